return {read_window(asked.window)}

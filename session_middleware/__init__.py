"""A memory for agent runs of the OpenAI Agents SDK, by session id, without touching the agents."""

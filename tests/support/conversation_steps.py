"""The steps of a conversation at random: what users ask, and what happens to it.

Each is a coroutine function on a ``Story``. The provider fails, a reader leaves, a person decides:
a step raises where another way was taken than the one that it asked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered,
    Runner,
    RunState,
    UserError,
)
from openai import APIStatusError

from session_middleware import (
    DuplicateTurn,
    TurnLost,
    session_scope,
    with_session_memory,
)
from session_middleware.testing.models import assistant, call, handoff_to
from session_middleware.testing.provider import Api, Provider
from tests.support.conversations import (
    SESSION,
    UNAVAILABLE,
    WINDOWS,
    Mishap,
    Step,
    Story,
    refuse_refusal,
)

BY_HAND: tuple[Any, ...] = (
    {"role": "user", "content": "By hand"},
    {"type": "function_call", "call_id": "torn", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "gone", "output": "sun"},
    {"type": "reasoning", "id": "rs_alone", "summary": []},
)


async def says(story: Story) -> None:
    """A question and its answer."""
    story.provider.script(assistant("Certainly."))
    result = await story.run(story.question())
    assert result.final_output == "Certainly."


async def uses_tools(story: Story) -> None:
    """The model calls tools before it answers, perhaps an agent that is a tool."""
    if story.random.random() < 0.3:
        inner = (call("weather", {"city": "Oslo"}), assistant("Snow."))
        story.provider.script(call("ask_expert", {"input": "How is it?"}), *inner)
    for _ in range(story.random.randrange(1, 3)):
        story.provider.script(story.some_calls())
    story.provider.script(assistant("It shines."))
    result = await story.run(story.question())
    assert result.final_output == "It shines."


async def provider_fails(story: Story) -> None:
    """The provider is down, at once or behind tools."""
    if story.random.random() < 0.7:
        story.provider.script(story.some_calls())
    story.provider.script(UNAVAILABLE)
    discards = story.random.random() < 0.2
    options = {"on_failure": "discard"} if discards else {}
    await story.fails(story.question(), APIStatusError, **options)


async def tool_fails(story: Story) -> None:
    """A tool raises beside others, which ends the run."""

    async def fail() -> None:
        raise Mishap

    story.in_the_tool = fail
    story.provider.script(story.some_calls(("risky", {})))
    await story.fails(story.question(), UserError)


async def cancelled_in_a_tool(story: Story) -> None:
    """A run is cancelled while its tools are at work."""
    story.provider.script(story.some_calls(("risky", {})), assistant("Never."))
    await story.is_cancelled(story.question())


async def cancelled_anywhere(story: Story) -> None:
    """A run is cancelled after some time, wherever it is then."""
    story.provider.script(story.some_calls(), assistant("Perhaps."))
    await story.is_cancelled(story.question(), soon=True)


async def stream_is_cut(story: Story) -> None:
    """A reader leaves after some events; the run finishes or is cancelled."""
    story.provider.script(story.some_calls(), assistant("In many words it shines."))
    on_departure = story.random.choice(("finish", "cancel"))
    run = with_session_memory(Runner.run_streamed, memory=story.memory, on_departure=on_departure)
    result = run(story.agent, story.question(), session_id=SESSION)
    events = result.stream_events()
    with suppress(StopAsyncIteration):
        for _ in range(story.random.randrange(12)):
            await anext(events)
    if story.random.random() < 0.3:
        result.cancel()
    await events.aclose()
    await story.is_over(result)


async def parks(story: Story) -> None:
    """The model calls tools that need approval, and others; the run waits."""
    pays = [
        (story.random.choice(("pay", "pay_riskily")), {"amount": story.random.randrange(99)})
        for _ in range(story.random.randrange(1, 4))
    ]
    story.provider.script(story.some_calls(*pays))
    result = await story.run(story.question())
    assert len(result.interruptions) == len(pays)
    story.parked.append(await kept(story, result.to_state()))


async def kept(story: Story, state: Any) -> Any:
    """A state as it is, or as it comes back from where it was kept."""
    if story.random.random() < 0.5:
        return state
    return await RunState.from_json(story.agent, state.to_json())


async def resumes(story: Story) -> None:
    """A person decides on some calls of a parked run, now or late; the resume may fail."""
    if not story.parked:
        await parks(story)
    state = story.parked.pop(story.random.randrange(len(story.parked)))
    for item in state.get_interruptions():
        decision = story.random.random()
        if decision < 0.55:
            state.approve(item)
        elif decision < 0.8:
            state.reject(item)
    undecided = len(state.get_interruptions())
    story.told.append(f"  undecided: {undecided}")
    for _ in range(3):
        mishap = story.random.choice((None, None, "provider", "cancel", "tool"))
        story.told.append(f"  mishap: {mishap}")
        if await resumed(story, state, mishap):
            return
        state = await kept(story, state)
    await resumed(story, state, None)


async def resumed(story: Story, state: Any, mishap: str | None) -> bool:
    """Resume once; returns whether that was the end of it."""

    async def fail() -> None:
        raise Mishap

    await story.forget_script()
    story.in_the_tool = fail if mishap == "tool" else None
    story.provider.script(UNAVAILABLE if mishap == "provider" else assistant("Paid."))
    try:
        if mishap == "cancel":
            await story.is_cancelled(state)
            story.in_the_tool = None
            return False
        result = await story.run(state)
    except DuplicateTurn:
        return True  # the attempt whose reader was cancelled had come to its end
    except APIStatusError as error:
        refuse_refusal(error)
        return False
    except (Mishap, UserError):  # the SDK's own word for a tool that raised
        if mishap != "tool":
            raise
        return False
    if result.interruptions:
        story.parked.append(await kept(story, result.to_state()))
    return True


async def hands_over(story: Story) -> None:
    """The model hands over to another agent, perhaps after tools, who answers or fails."""
    if story.random.random() < 0.5:
        story.provider.script(story.some_calls())
    story.provider.script(handoff_to(Agent(name="Specialist")))
    if story.random.random() < 0.5:
        story.provider.script(story.some_calls())
    if story.random.random() < 0.3:
        story.provider.script(UNAVAILABLE)
        await story.fails(story.question(), APIStatusError)
        return
    story.provider.script(assistant("Specially."))
    assert (await story.run(story.question())).final_output == "Specially."


async def guarded(story: Story) -> None:
    """A guardrail stops what is asked, or what is answered."""
    if story.random.random() < 0.5:
        story.provider.script(story.some_calls(), assistant("Nothing."))
        await story.fails("A bomb, please", InputGuardrailTripwireTriggered)
    else:
        if story.random.random() < 0.5:
            story.provider.script(story.some_calls())
        story.provider.script(assistant("The secret is out."))
        await story.fails(story.question(), OutputGuardrailTripwireTriggered)


async def retried(story: Story) -> None:
    """A request with a key fails behind tools, and is made again, perhaps after others."""
    key, question = f"key {story.number}", story.question()
    story.provider.script(story.some_calls(), UNAVAILABLE)
    await story.fails(question, APIStatusError, idempotency_key=key)
    if story.random.random() < 0.5:
        await says(story)
    if story.random.random() < 0.3:
        story.provider.script(UNAVAILABLE)
        await story.fails(question, APIStatusError, idempotency_key=key)
    story.provider.script(assistant("At last."))
    result = await story.run(question, idempotency_key=key)
    assert result.final_output == "At last."


async def released(story: Story) -> None:
    """The session is taken from a run while its tools are at work."""

    async def release() -> None:
        await story.memories[0].release(SESSION)

    story.in_the_tool = release
    story.provider.script(story.some_calls(("risky", {})), assistant("Too late."))
    await story.fails(story.question(), TurnLost)


async def gathered(story: Story) -> None:
    """Several runs of one turn at once; the provider answers from what each was asked."""
    asked = [
        story.random.choice((story.question(), "What is the weather in Paris and in Rome?"))
        for _ in range(story.random.randrange(2, 4))
    ]
    window = story.random.choice(WINDOWS)
    async with session_scope(SESSION, memory=story.memory, window=window):
        await asyncio.gather(*(Runner.run(story.agent, text) for text in asked))


async def edited(story: Story) -> None:
    """The history is changed through the memory's own methods, and may be torn by that."""
    memory = story.memory
    doing = story.random.random()
    if doing < 0.3:
        await memory.session(SESSION).pop_item()
    elif doing < 0.8:
        await memory.append_to_session(SESSION, [story.random.choice(BY_HAND)])
    else:
        await memory.clear_session(SESSION)
        story.parked.clear()  # what waits in a session that was cleared is refused


STEPS: tuple[Step, ...] = (
    says,
    uses_tools,
    uses_tools,
    provider_fails,
    tool_fails,
    cancelled_in_a_tool,
    cancelled_anywhere,
    stream_is_cut,
    parks,
    parks,
    resumes,
    resumes,
    resumes,
    hands_over,
    guarded,
    retried,
    released,
    gathered,
    edited,
    edited,
)


async def tell_stories(provider: Provider, api: Api, seeds: range, folder: Path) -> Counter[str]:
    """Tell one story for each seed; returns how often each kind of step was taken.

    Raises:
        AssertionError: the provider refused a history, or a step went another way than it should;
            the story is told.
    """
    model = provider.model(api)
    taken: Counter[str] = Counter()
    for seed in seeds:
        story = Story(seed, provider, model, folder / f"{api}-{seed}.db")
        try:
            taken += await story.tell(STEPS)
        except Exception as error:
            raise AssertionError(_account(story, seed, api)) from error
        assert not provider.refused, _account(story, seed, api)
    return taken


def _account(story: Story, seed: int, api: Api) -> str:
    lines = "\n".join(story.told)
    return f"seed {seed}, {api}; refused: {story.provider.refused}; the story:\n{lines}"

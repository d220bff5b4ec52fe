"""The page in a real browser, against a service that writes while it is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from session_middleware.inspect import app
from session_middleware.testing.models import assistant, scripted_agent
from tests.inspect.browser import DESK, PHONE, chromium, console, soon
from tests.support.approvals import paying
from tests.support.sessions import carried_out
from tests.support.uvicorn_server import serving

pytestmark = pytest.mark.browser

HARMFUL = "<script>document.title='owned'</script><img src=http://evil.example/x onerror=alert(1)>"


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def size(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[False, True], ids=["light", "dark"])
def dark(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def address(memory: Any) -> Iterator[str]:
    """The page of the memory, served by a real uvicorn, as it is opened first."""
    with serving(app(memory, allow_changes=True, token="t0ken")) as (url, _):
        yield url


def text_of(driver: Any, selector: str = "body") -> str:
    return str(driver.find_element(By.CSS_SELECTOR, selector).text)


def test_a_session_is_found_opened_and_followed(
    memory: Any, address: str, do: Any, size: Any, dark: bool
) -> None:
    """List, search, open, and see a turn appear while somebody looks."""
    for number in range(3):
        agent = scripted_agent(assistant(f"answer {number}"))
        do(carried_out("run", agent, f"question {number}", memory, f"user-{number}"))
    with chromium(size, dark=dark) as driver:
        driver.get(f"{address}/?token=t0ken")
        assert "token" not in driver.current_url
        assert "question 2" in text_of(driver)
        driver.find_element(By.ID, "q").send_keys("user-1", Keys.ENTER)
        soon(driver, lambda it: "question 2" not in text_of(it))
        driver.find_element(By.LINK_TEXT, "user-1").click()
        soon(driver, lambda it: "Turn 1" in text_of(it))
        soon(driver, lambda it: text_of(it, "#connection") == "live")
        agent = scripted_agent(assistant("a new answer"))
        do(carried_out("run", agent, "a new question", memory, "user-1"))
        soon(driver, lambda it: "a new answer" in text_of(it))
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= size[0]
        driver.find_elements(By.PARTIAL_LINK_TEXT, "what the model was given")[-1].click()
        soon(driver, lambda it: "Given to the model" in text_of(it))
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) is dark
        assert console(driver) == []


def test_a_person_approves_with_the_keyboard_alone(memory: Any, address: str, do: Any) -> None:
    """The decision is kept, and the service's process resumes."""
    counts: list[str] = []
    agent = paying(counts)
    do(carried_out("run", agent, "Pay", memory))
    with chromium() as driver:
        driver.get(f"{address}/pending?token=t0ken")
        for _ in range(20):
            focused = driver.switch_to.active_element
            if focused.text == "Approve":
                break
            focused.send_keys(Keys.TAB)
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        soon(driver, lambda it: "approved" in text_of(it))
        assert console(driver) == []
    (waiting,) = do(memory.pending())
    do(carried_out("run", agent, do(waiting.restore(agent)), memory))
    assert counts == ["pay"]


def test_what_somebody_wrote_does_nothing(memory: Any, address: str, do: Any) -> None:
    """No script runs, and nothing is fetched from elsewhere."""
    agent = scripted_agent(assistant(HARMFUL), name=HARMFUL)
    do(carried_out("run", agent, HARMFUL, memory))
    do(memory.set_title("s", HARMFUL))
    with chromium() as driver:
        driver.get(f"{address}/?token=t0ken")
        for path in ("/", "/session?id=s", "/given?id=s&turn=1"):
            driver.get(address + path)
            assert "owned" not in driver.title or "<script>" in driver.title
            assert HARMFUL in text_of(driver)
            fetched = driver.execute_script(
                "return performance.getEntriesByType('resource').map(one => one.name)"
            )
            assert all(name.startswith(address) for name in fetched)
        assert console(driver) == []

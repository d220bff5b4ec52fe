// Fetches what is live on the page again whenever the server says that it has changed.
(function () {
  "use strict";
  const live = document.getElementById("live");
  const source = live && live.dataset.events;
  if (!source) return;

  let fetching = false;
  let again = false;

  async function refresh() {
    if (fetching) {
      again = true;
      return;
    }
    fetching = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Inspect-Fragment": "1" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("live");
      const typing = live.contains(document.activeElement) && document.activeElement.matches("input");
      if (fresh && !typing) {
        const focused = document.activeElement && document.activeElement.id;
        const open = new Set([...live.querySelectorAll("details[open]")].map((one) => one.id));
        live.replaceChildren(...fresh.childNodes);
        for (const one of live.querySelectorAll("details")) if (open.has(one.id)) one.open = true;
        const back = focused && document.getElementById(focused);
        if (back) back.focus({ preventScroll: true });
      }
    } catch (error) {
      // The server is gone for a moment; the next event fetches the page.
    }
    fetching = false;
    if (again) {
      again = false;
      refresh();
    }
  }

  const events = new EventSource(source);
  events.onmessage = refresh;
  const sign = document.getElementById("connection");
  events.onopen = function () {
    if (sign) sign.textContent = "live";
  };
  events.onerror = function () {
    if (sign) sign.textContent = "not connected: trying again";
  };
})();

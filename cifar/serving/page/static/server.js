// Errors of Gradio's calls are shown at the top of the page instead of in Gradio's toasts, which disappear. While the server is away,
// the page says so and hides the answer to the previous photo; when it is back, the page sends the last photo again.
(() => {
  const FIRST_PAUSE_MS = 1000, LONGEST_PAUSE_MS = 10_000;
  const plainFetch = window.fetch;
  let waiting = false;

  // Returns whether a response has nothing to do with the request: a proxy answered for the server, or the server is starting.
  cifar.isAway = (response, body) => response.status >= 502 && response.status <= 504 && (!body.code || ["not_ready", "worker_gone"].includes(body.code));
  cifar.pause = (ms, signal) => new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });

  window.fetch = async (resource, options) => {
    // Gradio asks this after a lost connection, and would then reload the page, which would lose a running batch.
    if (/\/gradio_api\/app_id$/.test(String(resource?.url ?? resource))) return Response.error();
    if (!/\/gradio_api\/(run|upload)\b/.test(String(resource?.url ?? resource))) return plainFetch(resource, options);
    try {
      const response = await plainFetch(resource, options);
      const body = response.ok ? {} : await cifar.bodyOf(response.clone());
      const emptied = /"data":\[null,\d/.test(options?.body); // Gradio empties the field after an upload that failed, too
      if (response.ok) { if (!emptied) fail(null); }
      else if (cifar.isAway(response, body)) away();
      else fail(cifar.errorText(body));
      return response;
    } catch (error) {
      if (error.name === "AbortError" || error.name === "TimeoutError") throw error;
      away();
      return new Response('{"error": ""}', { status: 503 }); // after a call without an answer, Gradio would make no further call
    }
  };

  let failed = false; // a problem that another script shows stays until the next photo
  function fail(text) {
    if (text || failed) cifar.showProblem(text);
    failed = Boolean(text);
    document.body.classList.toggle("stale", Boolean(text));
  }

  async function away() {
    fail(cifar.text("problem.unreachable"));
    if (waiting) return;
    waiting = true;
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      await cifar.pause(pause);
      const response = await plainFetch(cifar.address("readyz")).catch(() => ({ ok: false }));
      if (response.ok) break;
    }
    waiting = false;
    if (cifar.sendAgain) cifar.sendAgain();
    else cifar.showProblem(cifar.text("problem.back"));
  }
})();

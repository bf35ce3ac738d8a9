// The live camera: sends one frame at a time. Frames that arrive before the answer are dropped.
(() => {
  const MIN_INTERVAL_MS = 200; // between two frames
  const SIDE = 160; // pixels of the longer side that are sent; the model's input is smaller
  let stream = null;

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-live]");
    if (button) (button.dataset.live === "start" ? start : stop)(button.closest(".live"));
  });

  async function start(box) {
    const problem = box.querySelector(".problem");
    problem.hidden = true;
    cifar.startsLive = true;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
    } catch (error) {
      problem.innerHTML = cifar.asHtml(cifar.cameraText(error));
      problem.hidden = false;
      return;
    } finally {
      cifar.startsLive = false;
    }
    const video = box.querySelector("video");
    video.srcObject = stream;
    show(box, true);
    await video.play();
    const current = stream;
    while (stream === current && box.isConnected) {
      const began = performance.now();
      if (!document.hidden && box.offsetParent) await answer(box, video);
      await cifar.pause(Math.max(20, MIN_INTERVAL_MS - (performance.now() - began)));
      if (box.offsetParent) box.querySelector(".rate").innerHTML = cifar.htmlText("live.rate", { rate: (1000 / (performance.now() - began)).toFixed(1) });
    }
    current.getTracks().forEach((track) => track.stop());
  }

  function stop(box) {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    show(box, false);
    document.querySelector(".live-answer").innerHTML = "";
  }

  function show(box, on) {
    box.querySelector("[data-live=start]").hidden = on;
    box.querySelector("[data-live=stop]").hidden = !on;
    for (const part of box.querySelectorAll("video, .rate")) part.hidden = !on;
    document.body.classList.toggle("live-on", on); // the video replaces the photo, and its answer the answer
    box.querySelector(`[data-live=${on ? "stop" : "start"}]`).focus();
  }

  async function answer(box, video) {
    const element = document.querySelector(".live-answer");
    try {
      const response = await fetch(cifar.address("gradio_api/run/predict"), {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        signal: AbortSignal.timeout(10_000),
        body: JSON.stringify({
          fn_index: gradio_config.dependencies.find(({ api_name }) => api_name === "live").id,
          data: [Number(document.querySelector("#version input")?.value) || null, { jpeg: picture(video) }],
          session_hash: "live",
        }),
      });
      const { data } = response.ok ? await response.json() : {};
      if (data && stream) element.innerHTML = data[0];
    } catch { /* server.js shows the error; the next frame tries again */ }
  }

  function picture(video) {
    const canvas = document.createElement("canvas");
    const scale = SIDE / Math.max(video.videoWidth, video.videoHeight, 1);
    canvas.width = Math.max(1, video.videoWidth * scale);
    canvas.height = Math.max(1, video.videoHeight * scale);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.85).split(",")[1];
  }
})();

// Feedback on an answer: sends the chosen label and shows thanks or the error below the buttons.
(() => {
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".feedback button");
    if (!button) return;
    const box = button.closest(".feedback");
    if (button.dataset.right) send(box, button);
    else showChoices(box, button.getAttribute("aria-expanded") !== "true");
  });

  function showChoices(box, shown) {
    box.querySelector("[aria-expanded]").setAttribute("aria-expanded", String(shown));
    box.querySelector(".choices").hidden = !shown;
  }

  async function send(box, button) {
    const feedback = { request_id: box.dataset.request, label: button.dataset.right };
    const status = box.querySelector("[role=status]");
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(feedback) };
    const response = await fetch(cifar.address("feedback"), options).catch(() => null);
    if (response?.ok) for (const other of box.querySelectorAll("[data-right]")) other.setAttribute("aria-pressed", String(other === button));
    status.classList.toggle("problem", !response?.ok);
    status.innerHTML = cifar.asHtml(response?.ok ? cifar.text("feedback.thanks") : cifar.errorText(await cifar.bodyOf(response)));
  }
})();

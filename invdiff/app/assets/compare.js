// Before and after: a slider across the picture, a choice of what lies on either side, and a zoom.
function start() {
  const root = element.querySelector(".compare");
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const [below, above] = root.querySelectorAll(".stage img");
  const stage = root.querySelector(".stage"), inner = root.querySelector(".inner");
  const slider = root.querySelector("[name=across]"), zoom = root.querySelector("[name=zoom]");
  const choices = root.querySelectorAll("select");
  const draw = () => {
    above.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    root.querySelector(".line").style.left = slider.value + "%";
    inner.style.width = zoom.value * 100 + "%";
    root.querySelector("output").value = zoom.value + "×";
  };
  const choose = () => {
    choices.forEach((choice, i) => {
      const picture = i ? above : below, option = choice.selectedOptions[0];
      picture.src = option.value; picture.alt = option.textContent;
    });
  };
  slider.addEventListener("input", draw);
  zoom.addEventListener("input", draw);
  choices.forEach(choice => choice.addEventListener("change", choose));
  stage.addEventListener("dblclick", () => { zoom.value = zoom.value > 1 ? 1 : 4; draw(); });
  choose(); draw();
}
start();
watch("value", start);

"""The first tab: a photo, its damage, the samplers, and what they make of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from invdiff.app import views
from invdiff.app.jobs import DONE, FAILED, Job
from invdiff.app.recipe import DAMAGES, Damage, backbone_by_name, examples, make_recipe, open_photo, painted_mask
from invdiff.app.restoring import Restoration, data_uri
from invdiff.backbones import backbone_names
from invdiff.errors import InvdiffError
from invdiff.operators import make_operator
from invdiff.operators.blur import KERNELS
from invdiff.operators.masks import mask_names
from invdiff.operators.super_resolution import KERNELS as SMALL_KERNELS
from invdiff.samplers import sampler_class, sampler_names

if TYPE_CHECKING:
    from invdiff.app.server import Desk

_POLL = 0.25  # seconds between two looks at a job
_READ_PAINT = (
    "(...given) => { given[0] = document.querySelector('#painter .painter')?.painted?.() || ''; return given; }"
)


def restore_page(desk: Desk) -> None:
    """Put the tab's components into the page under construction, and connect them."""
    from invdiff.app.server import asset

    limits = desk.limits
    shelf = [name for name in sampler_names() if not sampler_class(name).baseline and name != "unconditional"]
    gr.Markdown(
        "Give a photo, say what happened to it, choose samplers, press Restore. Nothing leaves the machine that this page runs on.",
        elem_classes="lede",
    )
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                photo = gr.File(
                    label="Photo (PNG, JPEG, WebP, TIFF, ...)", type="filepath", height=150, elem_id="photo"
                )
                example = gr.Dropdown(
                    list(examples()), value="Chelsea, 64x64", label="or an example", elem_id="example"
                )
            kind = gr.Dropdown(
                [(label, name) for name, label in DAMAGES.items()],
                value="paint",
                label="What happened",
                elem_id="damage",
            )
            brush = gr.HTML(elem_id="painter", js_on_load=asset("painter.js"), label="Paint what is to be filled")
            painted = gr.Textbox(visible=False, label="what was painted, a PNG as a data URI")
            with gr.Row(visible=False) as of_ready:
                mask = gr.Dropdown(mask_names(), value="wide", label="Mask", elem_id="mask")
                mask_seed = gr.Number(3, label="Seed of the mask", precision=0, minimum=0)
            mask_file = gr.File(
                label="Mask: white = known, black = missing",
                type="filepath",
                height=150,
                visible=False,
                elem_id="mask-file",
            )
            with gr.Row(visible=False) as of_small:
                scale = gr.Slider(2, 8, value=4, step=1, label="Times smaller")
                small_kernel = gr.Dropdown(list(SMALL_KERNELS), value="box", label="Made small by")
            with gr.Row(visible=False) as of_blur:
                blur = gr.Dropdown(list(KERNELS), value="gaussian", label="Kernel")
                blur_size = gr.Slider(3, 31, value=9, step=2, label="Pixels to a side")
                blur_width = gr.Slider(0.5, 8, value=1.6, step=0.1, label="Standard deviation (gaussian)")
                kernel = gr.HTML(elem_classes="kernel", label="The kernel")
            weights = gr.Dropdown(["mean", "luma"], value="mean", label="Grey is", visible=False)
            with gr.Row():
                sigma = gr.Slider(0, 60, value=0, step=1, label="Noise, grey levels", elem_id="sigma")
                done = gr.Radio(
                    [("Damage it for me", False), ("It is damaged already", True)],
                    value=False,
                    label="The photo",
                    elem_id="done",
                )
        with gr.Column(scale=4, min_width=320):
            samplers = gr.CheckboxGroup(
                shelf, value=["ddnm"], label=f"Samplers, {limits.samplers} at most", elem_id="samplers"
            )
            with gr.Row():
                backbone = gr.Dropdown(
                    ["auto", *backbone_names(), *limits.backbones], value="auto", label="Backbone", elem_id="backbone"
                )
                steps = gr.Number(20, label="Steps (0: its own)", precision=0, minimum=0, maximum=1000, elem_id="steps")
            with gr.Row():
                n_samples = gr.Slider(1, limits.samples, value=1, step=1, label="Samples", elem_id="n-samples")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
            classical = gr.Checkbox(False, label="Classical methods beside", elem_id="classical")
            with gr.Accordion("Options of the samplers", open=False):
                options = gr.Textbox(
                    label="name=value, or sampler.name=value",
                    placeholder="repaint.jump_length=5 eta=0.5",
                    elem_id="options",
                )
            calls = gr.HTML()
            with gr.Row():
                start = gr.Button("Restore", variant="primary", elem_id="restore")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
    status = gr.HTML(elem_id="status")
    live = gr.HTML(elem_id="live")
    with gr.Row():
        stops = [gr.Button("Stop", visible=False, size="sm", elem_id=f"stop-{i}") for i in range(limits.samplers)]
    with gr.Column(visible=False, elem_id="results") as results:
        gr.Markdown("## Before and after")
        compare = gr.HTML(elem_id="compare", js_on_load=asset("compare.js"))
        maps = gr.HTML(elem_id="maps")
        gr.Markdown("## Take it with you")
        files = gr.Files(
            label="Pictures, the way as a GIF, the mask, and how to repeat it", interactive=False, elem_id="files"
        )
        gr.Markdown(
            "In a folder with `photo.png` and `mask.png` of these files, either of the two makes the same pictures."
        )
        with gr.Row():
            with gr.Column(min_width=320):
                python = gr.Code(
                    language="python", label="Python", interactive=False, wrap_lines=True, elem_id="python"
                )
            with gr.Column(min_width=320):
                shell = gr.Code(language="shell", label="Shell", interactive=False, wrap_lines=True, elem_id="shell")

    def show_photo(path: str | None, name: str | None) -> tuple[str, str]:
        try:
            image, told = open_photo(path, name, limits)
        except InvdiffError as error:
            return "", views.said(str(error), wrong=True)
        return views.painter(image), views.said(" ".join(told))

    def show_damage(chosen: str) -> list[Any]:
        return [
            gr.update(visible=chosen == "paint"),
            gr.update(visible=chosen == "ready"),
            gr.update(visible=chosen == "file"),
            gr.update(visible=chosen == "super_resolution"),
            gr.update(visible=chosen == "blur"),
            gr.update(visible=chosen == "colorization"),
        ]

    def show_kernel(name: str, size: int, width: float) -> str:
        try:
            operator, given = Damage("blur", blur=name, blur_size=int(size), blur_width=width).operator()
            weights = make_operator(operator, (3, 64, 64), **given).kernel  # type: ignore[attr-defined]
        except InvdiffError as error:
            return views.said(str(error), wrong=True)
        from invdiff.images import to_pil

        picture = data_uri(to_pil((weights / weights.max()).float()[None]), 64)
        return f'<img src="{picture}" alt="kernel {name}, {size} pixels to a side">'

    def show_calls(chosen: list[str], count: int | None, own: str) -> str:
        schedule = backbone_by_name("cats64").schedule
        try:
            recipe = make_recipe(
                open_photo(None, "Chelsea, 64x64", limits)[0], Damage("identity"), chosen, steps=int(count or 0) or None,
                options=own or "", limits=limits,
            )  # fmt: skip
            parts = []
            for name in chosen:
                given = {k: v for k, v in recipe.arguments(name).items() if k not in ("sigma_y", "seed", "n_samples")}
                parts.append(f"{name} {sampler_class(name)(**given).network_calls(schedule):,}")
        except InvdiffError as error:
            return views.said(str(error), wrong=True)
        return views.said("Network calls for one sample: " + ", ".join(parts) + ".")

    def shown(restoration: Restoration, job: Job) -> dict[Any, Any]:
        place = desk.jobs.place(job)
        if place:
            text = f"Place {place} of {desk.jobs.length} in the queue."
        else:
            text = "Working: " + ", ".join(t.sampler for t in restoration.tracks.values() if not t.over) + "."
        names = list(restoration.tracks)
        buttons = {}
        for i, button in enumerate(stops):
            running = i < len(names) and not restoration.tracks[names[i]].over and len(names) > 1
            buttons[button] = gr.update(visible=running, value=f"Stop {names[i]}" if running else "Stop")
        notes = " ".join(restoration.recipe.said)
        return {status: views.said(f"{text} {notes}"), live: views.live(restoration), **buttons}

    def finished(restoration: Restoration, job: Job) -> dict[Any, Any]:
        notes = " ".join(restoration.recipe.said)
        hidden = {button: gr.update(visible=False) for button in stops}
        if job.state == FAILED:
            return {status: views.said(job.error, wrong=True), live: views.live(restoration), **hidden}
        if job.state != DONE:
            return {status: views.said("Stopped."), live: views.live(restoration), **hidden}
        recipe = restoration.done
        return {
            status: views.said(f"Done. {notes}"),
            live: views.live(restoration),
            results: gr.update(visible=True),
            compare: views.compare(restoration),
            maps: views.maps(restoration),
            files: [str(path) for path in restoration.files],
            python: recipe.python(restoration.classical),
            shell: recipe.shell(restoration.classical),
            **hidden,
        }

    async def restore(
        paint: str, path: str | None, name: str | None, chosen: str, ready: str, ready_seed: int, of_file: str | None,
        times: int, small_by: str, blurred_by: str, size: int, width: float, grey: str, noise: float, damaged: bool,
        names: list[str], network: str, count: int, samples: int, start_seed: int, beside: bool, own: str,
        request: gr.Request,
    ) -> AsyncIterator[dict[Any, Any]]:  # fmt: skip
        visitor = str(request.session_hash)

        def ask() -> Restoration:
            image, told = open_photo(path, name, limits)
            hole = _painted(paint) if chosen == "paint" else None
            damage = Damage(
                chosen, float(noise), bool(damaged), ready, int(ready_seed or 0), of_file, hole,
                int(times), small_by, blurred_by, int(size), float(width), grey,
            )  # fmt: skip
            recipe = make_recipe(
                image, damage, list(names), backbone=network, steps=int(count or 0) or None, n_samples=int(samples),
                seed=int(start_seed or 0), baselines=bool(beside), options=own or "", limits=limits, said=tuple(told),
            )  # fmt: skip
            return Restoration(recipe, desk.new_folder(), limits)

        try:
            restoration = await asyncio.to_thread(ask)
            job = desk.jobs.submit(visitor, restoration)
        except InvdiffError as error:
            yield {status: views.said(str(error), wrong=True), live: "", results: gr.update(visible=False)}
            return
        desk.keep(visitor, restoration)
        yield {results: gr.update(visible=False), **shown(restoration, job)}
        last: Any = None
        try:
            while not job.over:
                now = (
                    job.state,
                    desk.jobs.place(job),
                    *((t.state, t.x0, t.calls) for t in restoration.tracks.values()),
                )
                if now != last:
                    last = now
                    yield shown(restoration, job)
                await asyncio.sleep(_POLL)
        finally:
            if not job.over:  # nobody listens any more
                job.stopping.set()
        yield finished(restoration, job)

    def stop_all(request: gr.Request) -> None:
        desk.jobs.stop(str(request.session_hash))

    def stopper(number: int) -> Callable[[gr.Request], None]:
        def stop_one(request: gr.Request) -> None:
            restoration = desk.restorations.get(str(request.session_hash))
            if restoration is not None and number < len(restoration.tracks):
                restoration.stop(list(restoration.tracks)[number])

        return stop_one

    of_kind = [brush, of_ready, mask_file, of_small, of_blur, weights]
    hidden: Any = {"show_progress": "hidden", "api_visibility": "private"}
    moved: Any = {**hidden, "trigger_mode": "always_last"}  # of several moves the last one counts
    for source in (photo, example):
        source.change(show_photo, [photo, example], [brush, status], **moved)
    kind.change(show_damage, kind, of_kind, **moved)
    for field in (blur, blur_size, blur_width):
        field.change(show_kernel, [blur, blur_size, blur_width], kernel, **moved)
    for asked in (samplers, steps, options):
        asked.change(show_calls, [samplers, steps, options], calls, **moved)
    start.click(
        restore,
        [painted, photo, example, kind, mask, mask_seed, mask_file, scale, small_kernel, blur, blur_size, blur_width, weights,
         sigma, done, samplers, backbone, steps, n_samples, seed, classical, options],
        [status, live, *stops, results, compare, maps, files, python, shell],
        js=_READ_PAINT,
        api_name="restore",
        concurrency_limit=None,
        show_progress="hidden",
    )  # fmt: skip
    stop.click(stop_all, None, None, queue=False, **hidden)
    for i, button in enumerate(stops):
        button.click(stopper(i), None, None, queue=False, **hidden)
    brush.value, kernel.value = (
        views.painter(open_photo(None, "Chelsea, 64x64", limits)[0]),
        show_kernel("gaussian", 9, 1.6),
    )


def _painted(uri: str) -> Any:
    """What the page's canvas holds, None where nothing was painted."""
    if not uri:
        return None
    head, comma, content = uri.partition(",")
    if not comma or not head.startswith("data:image/png;base64") or len(content) > 20_000_000:
        raise InvdiffError("what was painted must be a PNG picture of at most 15 MB")
    try:
        return painted_mask(base64.b64decode(content, validate=True))
    except binascii.Error:
        raise InvdiffError("what was painted must be a PNG picture") from None

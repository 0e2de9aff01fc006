"""The second tab: what the chapters of the course show as pictures, to be moved by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from invdiff.app import learning, views
from invdiff.backbones.schedule import SPACINGS
from invdiff.errors import InvdiffError
from invdiff.samplers.paths import PATHS


def learn_page() -> None:
    """Put the tab's components into the page under construction, and connect them."""
    gr.Markdown("The figures of the course, to be moved by hand. Nothing here asks a network.", elem_classes="lede")
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown("### The schedule")
            with gr.Row():
                name = gr.Dropdown(list(learning.SCHEDULES), value="linear", label="Schedule", elem_id="schedule")
                spacing = gr.Dropdown(list(SPACINGS), value="respaced", label="Spacing")
            kept = gr.Slider(1, 250, value=20, step=1, label="Times kept", elem_id="kept")
            _drawn(learning.schedule_figure, [name, kept, spacing], "schedule-figure")
        with gr.Column(min_width=320):
            gr.Markdown("### The path")
            with gr.Row():
                path = gr.Dropdown(list(PATHS), value="jumps", label="Path", elem_id="path")
                steps = gr.Slider(2, 250, value=50, step=1, label="Times kept")
            with gr.Row():
                length = gr.Slider(1, 50, value=10, step=1, label="Jump length")
                repeats = gr.Slider(1, 20, value=3, step=1, label="Walks of a stretch")
            _drawn(learning.path_figure, [path, steps, length, repeats], "path-figure")
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown("### The filter of the residual")
            with gr.Row():
                sampler = gr.Dropdown(
                    list(learning.FILTERS), value="diffpir", label="Sampler", elem_id="filter-sampler"
                )
                operator = gr.Dropdown(list(learning.OPERATORS), value="gaussian blur", label="Operator")
            with gr.Row():
                t = gr.Slider(1, 999, value=400, step=1, label="Time t")
                noise = gr.Slider(0, 0.5, value=0.1, step=0.01, label="Noise σ of y")
            _drawn(learning.filter_figure, [sampler, operator, t, noise], "filter-figure")
        with gr.Column(min_width=320):
            gr.Markdown("### Particles on a plane")
            with gr.Row():
                toy = gr.Dropdown(list(learning.TOY), value="ddnm+", label="Sampler", elem_id="toy-sampler")
                toy_steps = gr.Slider(2, 200, value=60, step=1, label="Times kept")
            with gr.Row():
                toy_noise = gr.Slider(0.02, 0.5, value=0.1, step=0.02, label="Noise σ of y")
                way = gr.Slider(0, 1, value=1, step=0.01, label="Way gone", elem_id="way")
            _drawn(learning.plane_figure, [toy, toy_steps, toy_noise, way], "plane-figure")


def _drawn(figure: Callable[..., str], fields: list[Any], elem_id: str) -> None:
    """The figure below its fields, drawn again when one of them is moved."""

    def draw(*values: Any) -> str:
        try:
            return figure(*values)
        except InvdiffError as error:
            return views.said(str(error), wrong=True)

    picture = gr.HTML(draw(*(field.value for field in fields)), elem_id=elem_id)
    for field in fields:
        field.change(
            draw, fields, picture, show_progress="hidden", trigger_mode="always_last", api_visibility="private"
        )

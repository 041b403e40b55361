# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One restrained theme: system fonts, one accent, thin lines; light and dark."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).with_name("style.css")
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
FONT_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def make_theme() -> gr.themes.Base:
    """The theme; fonts are the reader's own, so none is loaded."""
    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=FONT,
        font_mono=FONT_MONO,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
    )
    return theme.set(
        body_background_fill="#fbfbfa",
        body_background_fill_dark="#14171c",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1b1f26",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        block_title_text_color="#1f2937",
        block_title_text_color_dark="#e5e7eb",
        block_info_text_color="#566070",
        block_info_text_color_dark="#a9b3c1",
        body_text_color="#1f2937",
        body_text_color_dark="#e5e7eb",
        body_text_color_subdued="#566070",
        body_text_color_subdued_dark="#a9b3c1",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1b1f26",
        input_border_width="1px",
        button_border_width="1px",
        checkbox_border_width="1px",
        input_border_color="#c3cad4",
        input_border_color_dark="#3b4452",
        button_primary_background_fill="#00558a",
        button_primary_background_fill_hover="#00446f",
        button_primary_background_fill_dark="#56b4e9",
        button_primary_background_fill_hover_dark="#7cc5ee",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#0b1a26",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1b1f26",
        button_secondary_border_color="#c3cad4",
        button_secondary_border_color_dark="#3b4452",
        slider_color="#0072b2",
        slider_color_dark="#56b4e9",
    )

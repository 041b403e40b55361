# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Starting the page: `launch()`, which `app.py` and `ppow demo` call."""

from __future__ import annotations

import os

from . import offline  # isort: skip  # before gradio, whose settings it makes
from . import zerogpu  # isort: skip  # before torch

import gradio as gr
from starlette.middleware import Middleware

from .app import build_demo
from .engine import Engine
from .models import Models
from .theme import STYLE, make_theme


def launch(
    demo: gr.Blocks | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    device: str | None = None,
    open_browser: bool = False,
    block: bool = True,
) -> gr.Blocks:
    """
    Serves the page.

    Args:
        demo (`gradio.Blocks`, *optional*): From [`build_demo`]; by default with the models the environment names.
        host (`str`, *optional*): Address to listen on; this machine only by default, any on a Space.
        port (`int`, *optional*): Port; the first free one from 7860 by default.
        device (`str`, *optional*): Where the models run; a GPU if there is one.
        open_browser (`bool`, *optional*, defaults to `False`): Open the page.
        block (`bool`, *optional*, defaults to `True`): Return only when the server ends.

    Returns:
        `gradio.Blocks`: The page, with `local_url`.
    """
    if demo is None:
        engine = Engine(Models.load(device))
        if not zerogpu.ACTIVE:  # There, no GPU is at hand until a visitor asks for one.
            engine.warm_up()
        demo = build_demo(engine)
    demo.launch(
        server_name=host or os.environ.get("GRADIO_SERVER_NAME"),
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=not block,
        share=False,
        theme=make_theme(),
        css_paths=STYLE,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs={"middleware": [Middleware(offline.OfflineHeaders)]},
    )
    return demo

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Nothing of this page comes from, or goes to, another machine."""

from __future__ import annotations

import os

# Read by gradio when it is imported: no usage statistics, no question for newer versions.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

# The browser enforces what the settings promise: whatever a later gradio might add, it is not loaded. (Gradio compiles
# its templates in the page, hence 'unsafe-eval', and has its styles and start-up script inline.)
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "base-uri 'self'",
        "form-action 'self'",
    )
)


class OfflineHeaders:
    """ASGI middleware: adds the content security policy to every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_header(event):
            if event["type"] == "http.response.start":
                headers = [*event.get("headers", ()), (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())]
                headers.append((b"referrer-policy", b"no-referrer"))
                event = {**event, "headers": headers}
            await send(event)

        await self.app(scope, receive, send_with_header)

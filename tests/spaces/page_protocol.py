# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a browser asks of the served page when a button is pressed, without a browser; announcements, refusals."""

import json
import re
import urllib.error
import urllib.request
import uuid


class PageVisit:
    """
    One visitor's page.

    Args:
        url (`str`): Address of the page.
    """

    def __init__(self, url: str):
        self.session = uuid.uuid4().hex
        with urllib.request.urlopen(f"{url}config") as response:
            config = json.load(response)
        self.api = f"{url.rstrip('/')}{config['api_prefix']}"
        self.events = {event["id"]: event for event in config["dependencies"]}
        self.names = {item["id"]: item["props"].get("elem_id") for item in config["components"]}
        self.values = {item["id"]: item["props"].get("value") for item in config["components"]}
        self.enabled = {}  # buttons by `elem_id`, as far as the server has switched them
        self.statuses = []  # every message shown
        self.refusals = []  # HTTP status of every event the queue did not take

    def press(self, elem_id: str) -> None:
        """Presses a button and does all that follows, until the last of it is over."""
        button = next(number for number, name in self.names.items() if name == elem_id)
        event = next(e for e in self.events.values() if [button, "click"] in e["targets"])
        while event is not None:
            succeeded = self._run(event)
            event = self._next(event, succeeded)

    def set(self, elem_id: str, value) -> None:
        """Changes a control."""
        self.values[next(number for number, name in self.names.items() if name == elem_id)] = value

    def _next(self, event: dict, succeeded: bool) -> dict | None:
        # As gradio's page does it: `then` follows what did not raise, `failure` what did.
        following = (e for e in self.events.values() if e["trigger_after"] == event["id"])
        return next((e for e in following if e["trigger_only_on_failure"] is not succeeded), None)

    def _run(self, event: dict) -> bool:
        body = {
            "fn_index": event["id"],
            "session_hash": self.session,
            "data": [self.values.get(number) for number in event["inputs"]],
        }
        if not event["queue"]:
            self._show(event, self._post(f"run/{event['api_name']}", body)["data"])
            return True
        try:
            self._post("queue/join", body)
        except urllib.error.HTTPError as error:
            self.refusals.append(error.code)
            return False
        with urllib.request.urlopen(f"{self.api}/queue/data?session_hash={self.session}") as stream:
            for line in stream:
                message = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
                if message.get("msg") == "process_completed":
                    if message["success"]:
                        self._show(event, message["output"]["data"])
                    return message["success"]
                if message.get("msg") == "process_generating":
                    self._show(event, message["output"]["data"])
        raise AssertionError("the stream ended before the event did")

    def _post(self, path: str, body: dict) -> dict:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def _show(self, event: dict, data: list) -> None:
        for number, value in zip(event["outputs"], data, strict=True):
            if isinstance(value, dict) and "interactive" in value:
                self.enabled[self.names[number]] = value["interactive"]
            # What changed of a text comes as a list of edits: of a message, the whole of it.
            if self.names[number] == "pp-status" and (found := re.search(r"<div.*</div>", json.dumps(value))):
                self.statuses.append(found.group())

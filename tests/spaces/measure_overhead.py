# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
What the page costs: the clock the race shows against the same `generate` call without the page, as `ppow generate`
makes it, in interleaved pairs in one process with the real models:

    python tests/spaces/measure_overhead.py

Prints both, the ratio, and the seconds to the first visible token. Best on a machine with nothing else to do.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spaces" / "ppow_demo"))

import gradio_client  # noqa: E402
from ppow_demo.app import build_demo  # noqa: E402
from ppow_demo.engine import Engine  # noqa: E402
from ppow_demo.examples import EXAMPLES  # noqa: E402
from ppow_demo.models import Models  # noqa: E402
from ppow_demo.serve import launch  # noqa: E402
from ppow_demo.settings import Settings  # noqa: E402

from ppow_hf import WindowConfig  # noqa: E402
from ppow_hf.console import chat_inputs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--prompt", default=EXAMPLES[0][1])
    arguments = parser.parse_args()

    engine = Engine(Models.load())
    engine.warm_up()
    finished = []
    race = engine.race

    def noted(*args, **kwargs):
        for state in race(*args, **kwargs):
            yield state
        finished.append(state)

    engine.race = noted  # the page reports rounded figures: keep the ones they come from
    demo = launch(build_demo(engine), block=False)
    visitor = gradio_client.Client(demo.local_url, verbose=False)
    target, drafter = engine.models.target, engine.models.drafter()
    settings = Settings(max_new_tokens=arguments.new_tokens)
    window = settings.window(WindowConfig.coerce(getattr(drafter.generation_config, "window", None)))
    inputs = chat_inputs(engine.models.tokenizer, arguments.prompt, target.device)
    bare, page, first = [], [], []
    for _ in range(arguments.pairs):
        start = time.perf_counter()
        target.generate(**inputs, **settings.generate_kwargs, assistant_model=drafter, window=window)
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        controls = (0, arguments.new_tokens, settings.policy, settings.size, settings.min_size, settings.max_size, 0)
        job = visitor.submit(arguments.prompt, *controls, api_name="/race")
        while not any(isinstance(output[1], str) and 'class="pp-t' in output[1] for output in job.outputs()):
            time.sleep(0.01)
        first.append(time.perf_counter() - start)
        job.result(timeout=600)
        page.append(finished[-1].drafted.seconds)
    demo.close()
    ratios = [there / here for there, here in zip(page, bare, strict=True)]
    print(f"generate {statistics.median(bare):.2f} s, on the page {statistics.median(page):.2f} s (medians)")
    print(f"page over generate, pair by pair: median {statistics.median(ratios):.3f}, {[f'{r:.3f}' for r in ratios]}")
    print(f"first visible token after {statistics.median(first):.2f} s (median), at most {max(first):.2f} s")


if __name__ == "__main__":
    main()

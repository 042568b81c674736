"""Settings of the benchmark, of the comparison with other engines, and of the roofline."""

from __future__ import annotations

from deepseek_r1.config.base import option
from deepseek_r1.config.local import LocalModelConfig
from deepseek_r1.core.errors import ConfigError

DEFAULT_CASES = "cold:5,prefill:512,decode:96,8:64,16:64,32:64"
"""What a comparison measures where nothing else is asked for."""


class BenchmarkConfig(LocalModelConfig):
    """What `deepseek-benchmark` is told. Without `url` the model runs in this process."""

    url: str | None = option(
        default=None, help="measure this OpenAI-compatible server instead (MODEL is its name there)", metavar="URL"
    )
    api_key: str | None = option(
        default=None, help="bearer token for --url", secret=True, env="DEEPSEEK_R1_API_KEY", metavar="KEY"
    )
    concurrency: tuple[int, ...] = option(
        default=(1, 4, 16), help="requests in flight at a time, one level after the other", minimum=1, maximum=1024
    )
    prompts: int = option(
        default=16, help="requests at each level (at least one per slot is sent)", minimum=1, maximum=100_000
    )
    prompt_tokens: int = option(default=128, help="length of each prompt in tokens", minimum=1, maximum=1_000_000)
    max_tokens: int = option(default=64, help="tokens generated per request", minimum=1, maximum=1_000_000)
    seed: int = option(default=0, help="seed of the prompts", minimum=0)
    timeout: float = option(
        default=600.0, help="seconds a request to --url may stay silent", minimum=0.1, maximum=86_400
    )
    json: str | None = option(default=None, help="also write the results to this file", metavar="FILE")
    compare: str | None = option(
        default=None,
        help="compare with other engines instead, in rounds: llama.cpp, vllm, openvino, transformers, each as "
        "NAME[:FORM][:flag=value] (as llama.cpp:q8_0,openvino:int8)",
        metavar="PEERS",
    )
    rounds: int = option(
        default=5, help="with --compare: rounds that are counted, after one that warms up", minimum=1, maximum=1000
    )
    cases: str = option(
        default=DEFAULT_CASES,
        help="with --compare: cold:STARTS, prefill:PROMPT_TOKENS, decode:TOKENS, CONCURRENT:TOKENS",
        metavar="CASES",
    )
    threads: int | None = option(
        default=None, help="with --compare: threads of every engine; default: the cores there are", minimum=1
    )
    peers_dir: str | None = option(
        default=None,
        help="with --compare: folder of the peers' environments (deploy/peers.sh makes them); default: peers in the "
        "cache folder",
        metavar="FOLDER",
    )
    peer_models: str | None = option(
        default=None,
        help="with --compare: folder of the forms that peers read (benchmarks/peer_models.py writes them); default: "
        "beside MODEL, of the default model in --peers-dir",
        metavar="FOLDER",
    )
    chart: str | None = option(default=None, help="with --compare: also draw the result as SVG", metavar="FILE")

    def check(self) -> None:
        """Besides the model's checks: at least one level, and an address that can be called."""
        super().check()
        if not self.concurrency:
            raise ConfigError("concurrency must name at least one level", remedy="write --concurrency 1,4,16")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url {self.url!r} is not an http address", remedy="write http://127.0.0.1:8080")
        if self.url is not None and self.compare is not None:
            raise ConfigError("--compare runs every engine in a process of its own", remedy="leave out --url")
        if self.chart is not None and self.compare is None:
            raise ConfigError("--chart draws a comparison", remedy="add --compare, or leave it out")


class RooflineConfig(LocalModelConfig):
    """What `deepseek-benchmark roofline` is told."""

    rounds: int = option(default=5, help="runs of each phase, after one that warms up", minimum=1, maximum=1000)
    cases: str = option(
        default="prefill:512,decode:96,8:64,16:64,32:64",
        help="phases: prefill:PROMPT_TOKENS, decode:TOKENS, CONCURRENT:TOKENS",
        metavar="CASES",
    )
    threads: int | None = option(default=None, help="threads; default: the cores there are", minimum=1)
    seed: int = option(default=0, help="seed of the prompts", minimum=0)
    json: str | None = option(default=None, help="also write the results to this file", metavar="FILE")

    def check(self) -> None:
        """Besides the model's checks: steps that give one token each."""
        super().check()
        if self.speculative != "off":
            raise ConfigError("the roofline counts steps of one token per request", remedy="leave out --speculative")

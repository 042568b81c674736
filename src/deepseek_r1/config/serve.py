"""Settings of the OpenAI-compatible server."""

from __future__ import annotations

from deepseek_r1.config.adapters import METAVAR, parse_adapters
from deepseek_r1.config.base import Config, option
from deepseek_r1.config.precision import PRECISION_HELP, PRECISION_METAVAR, parse_precision
from deepseek_r1.config.speculation import HELP, Speculation
from deepseek_r1.core.errors import ConfigError


class ServeConfig(Config):
    """What `deepseek-r1 serve` and `Deployer.serve` are told. Sizes are bytes, times seconds."""

    model: str = option(
        default="default",
        help="'default' (the embedded model), a folder, a GGUF or safetensors file, or a hub id",
        metavar="MODEL",
        positional=True,
    )
    host: str = option(
        default="127.0.0.1", help="address to listen on; 0.0.0.0 opens the server to the network", metavar="ADDRESS"
    )
    port: int = option(default=8080, help="port to listen on; 0 takes a free one", minimum=0, maximum=65535, short="-p")
    precision: str = option(
        default="auto",
        help=PRECISION_HELP,
        metavar=PRECISION_METAVAR,
    )
    memory: int | None = option(
        default=None,
        help="memory for weights, caches and both processes (as 4GiB); default: half of what is free",
        minimum=1,
        size=True,
    )
    max_concurrent: int = option(default=32, help="requests computed at the same time", minimum=1, maximum=1024)
    max_queue: int | None = option(
        default=None, help="requests that wait beyond those; more get a 429; default: 4 x --max-concurrent", minimum=0
    )
    speculative: Speculation = option(default="off", help=HELP)
    adapter: tuple[str, ...] = option(
        default=(),
        help="low-rank adapter in PEFT's files, which requests choose by its name as their model; "
        "may be given several times; without it the default model has its own, r1-lite, and with 'none' it has none",
        metavar=METAVAR,
    )
    default_adapter: str | None = option(
        default=None,
        help="adapter of requests that name no model, or 'default'; without it they get the model itself, or r1-lite "
        "where no --adapter is given",
        metavar="NAME",
    )
    api_key: str | None = option(
        default=None,
        help="clients must send this as their bearer token (safer in the environment than on the command line)",
        secret=True,
        env="DEEPSEEK_R1_API_KEY",
    )
    stream_interval: float = option(
        default=0.05,
        help="seconds between two events of a stream: tokens made meanwhile go out together",
        minimum=0,
        maximum=10,
    )
    max_body_bytes: int = option(default=8 << 20, help="largest request body that is read", minimum=1, size=True)

    @property
    def queue_limit(self) -> int:
        """Requests that may wait: `max_queue`, or four times `max_concurrent`."""
        return 4 * self.max_concurrent if self.max_queue is None else self.max_queue

    @property
    def adapters(self) -> dict[str, str]:
        """Folders of the adapters by name."""
        return parse_adapters(self.adapter)

    def check(self) -> None:
        """Refuse precisions and adapters that are not there, and keys that no HTTP header can carry."""
        parse_precision(self.precision)
        if self.default_adapter not in (None, *self.adapters):
            raise ConfigError(
                f"default_adapter: there is no adapter {self.default_adapter!r}",
                remedy=f"load it too: --adapter {METAVAR}",
            )
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.isprintable() and self.api_key.strip()
        ):
            raise ConfigError("api_key must be printable ASCII and not empty", remedy="choose another key")

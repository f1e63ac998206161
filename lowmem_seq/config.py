"""What a run is: one validated model of every setting, with units.

A preset is a YAML file in configs/ with these keys; a key it leaves out has the default given here. The command
line lays `--set a.b=value` and its own flags over a preset, and the result is checked once, here: whatever is
further inside takes plain arguments.
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from msgspec import Meta

from lowmem_seq.errors import UsageError, nearest
from lowmem_seq.files import read_limited
from lowmem_seq.sections import Reader, Section
from lowmem_seq.units import Hours, Interval, parse_bytes, parse_hours, parse_interval, parse_seconds

FORMAT_VERSION = 1
LARGEST_CONFIG_BYTES = 64_000
"""What no setting needs more than; YAML takes three hundred times its size in memory."""
_EXPONENT = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+\s*")


def _interval_text(value: object) -> object:
    parse_interval(str(value))
    return value


def _bytes_from_text(value: object) -> object:
    return parse_bytes(value) if isinstance(value, str) else value


def _time_text(value: object) -> object:
    parse_seconds(str(value))
    return value


def _hours_text(value: object) -> object:
    parse_hours(str(value))
    return value


Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
# a function beside a type turns what is given into what the type is checked against: see sections.py
IntervalText = Annotated[str, _interval_text]
TimeText = Annotated[str, _time_text]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
HoursText = Annotated[str, _hours_text]
ByteCount = Annotated[Count | None, _bytes_from_text]


class _PlainLoader(yaml.SafeLoader):
    """YAML without references (`*name`): a few lines of them can stand for more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) are not taken here")
        return super().compose_node(parent, index)


class Sequencer2DConfig(Section, frozen=True):
    """A Sequencer2D: stages of BiLSTM2D layers over a grid of tokens."""

    architecture: Literal["sequencer2d"]
    layers: tuple[Count, ...]
    """Sequencer2D layers in each stage."""
    widths: tuple[Count, ...]
    """Channels of a token in each stage."""
    lstm_widths: tuple[Count, ...]
    """Hidden units of each of the four LSTM directions, by stage."""
    patch_sizes: tuple[Count, ...]
    """Side of the patches that become a stage's tokens: of the image for the first, of tokens after it."""
    mlp_ratio: Positive = 3.0
    """Hidden units of the channel MLP over the token's channels."""
    embed_norm: bool = False
    """Whether a LayerNorm follows the patch embedding (the seeds' models; the paper has none)."""
    final_pointwise: bool = False
    """Whether a pointwise linear layer stands before the pooling (the seeds' models; the paper has none)."""
    drop_path: Probability = 0.0
    """Probability that a sample skips a residual branch of the last layer; it grows linearly from 0."""
    dropout: Probability = 0.0
    """Probability that a pooled feature is dropped before the head."""
    initialisation: Literal["paper", "he"] = "he"
    """`he`: Kaiming normal linear layers; `paper`: as timm draws them."""

    def __post_init__(self) -> None:
        counts = {len(self.layers), len(self.widths), len(self.lstm_widths), len(self.patch_sizes)}
        if len(counts) != 1 or 0 in counts:
            raise ValueError("layers, widths, lstm_widths and patch_sizes need one value a stage each")


class VanillaBiLSTMConfig(Section, frozen=True):
    """A plain bidirectional LSTM over the patches as one row-major sequence."""

    architecture: Literal["vanilla_bilstm"]
    layers: Count
    """BiLSTM layers."""
    width: Count
    """Channels of a token."""
    lstm_width: Count
    """Hidden units of each direction."""
    patch_size: Count
    """Side of the patches that become tokens."""
    dropout: Probability = 0.0
    """Probability that a feature is dropped before the head."""


ModelConfig: TypeAlias = Sequencer2DConfig | VanillaBiLSTMConfig


class DataConfig(Section, frozen=True):
    """Which images, and how they are split."""

    source: str = "cifar10"
    """A catalogue name; a path to a folder or zip laid out CLASS/file or train/CLASS + test/CLASS; or `host`: what
    the machine has that is joined."""
    classes: tuple[str, ...] | None = None
    """The subset of classes to use, in this order; null takes all."""
    image_size: Annotated[int, Meta(ge=8, le=1024)] = 32
    """Side of the square that every image is brought to, in pixels."""
    validation_fraction: Annotated[float, Meta(gt=0, lt=0.9)] = 0.1
    """Share of the training images that is kept aside, by seed, to choose by."""


class AugmentationConfig(Section, frozen=True):
    """What is done to training images, each draw keyed by (seed, epoch, sample)."""

    flip: bool | None = None
    """Mirror left and right, with probability one half; null: unless the dataset is of digits."""
    crop_padding: Annotated[int, Meta(ge=0)] = 4
    """Shift by up to this many pixels each way, filling with the mean colour."""
    rotate_degrees: Annotated[float, Meta(ge=0, le=180)] = 0.0
    """Rotate by up to this angle each way."""
    zoom: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Scale by exp(-zoom) to exp(zoom), and stretch by half of that."""
    colour: Annotated[float, Meta(ge=0, lt=2)] = 0.0
    """Change contrast, brightness and saturation by up to this share."""
    erase: Fraction = 0.0
    """Share of the images that lose a square of 1/5 to 1/2 of the side."""
    mixup: Fraction = 0.0
    """Share of the samples that are blended with their partner (arXiv 1710.09412)."""
    cutmix: Fraction = 0.0
    """Share of the samples that get a rectangle of their partner (arXiv 1905.04899)."""
    mixing_off_fraction: Fraction = 0.0
    """Final share of the training during which mixup and cutmix are off."""

    def __post_init__(self) -> None:
        if self.mixup + self.cutmix > 1:
            raise ValueError("mixup and cutmix together must not pass 1")


class RecipeConfig(Section, frozen=True):
    """How the weights are found: AdamW, linear warm-up, cosine decay."""

    epochs: Count = 36
    """Times that every training image is seen."""
    effective_batch: Annotated[int, Meta(ge=1, le=10**6)] = 128
    """Images in one optimizer step; never changed by memory."""
    peak_learning_rate: Positive = 2e-3
    """Learning rate after the warm-up."""
    final_learning_rate: NotNegative = 0.0
    """Learning rate that the cosine ends at."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the rate grows linearly from 0."""
    weight_decay: NotNegative = 0.05
    """Decoupled weight decay of matrices; vectors (biases, norms) have none."""
    beta1: Probability = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: Probability = 0.999
    """AdamW's decay of the gradient's square."""
    clip_norm: Positive | None = 1.0
    """Largest norm of the whole gradient; null leaves it as it is."""
    label_smoothing: Fraction = 0.1
    """Share of the target that is spread over all classes."""
    ema_decay: Probability = 0.0
    """Decay of the running average of the weights that is evaluated; 0 keeps none."""
    evaluate_every_epochs: Count = 1
    """Epochs between two looks at the validation part."""


class CheckpointConfig(Section, frozen=True):
    """When a run is saved, and how many saves stay."""

    every: IntervalText = "5min"
    """`200steps`, `5min`, or `auto`: as often as keeps saving under 1 % of the time."""
    keep: Count = 2
    """Newest checkpoints that stay on disk."""
    keep_best: bool = True
    """Whether the one with the best validation accuracy stays too; a new best is saved out of turn where that keeps
    saving under 1 % of the time."""
    keep_every_steps: Count | None = None
    """Checkpoints of every so many steps stay for good; null keeps none."""
    disk_patience: TimeText = "30min"
    """How long a full or failing disk is waited for, before the run ends with exit code 8."""

    @property
    def interval(self) -> Interval:
        """The parsed value of `every`."""
        return parse_interval(self.every)

    @property
    def disk_patience_seconds(self) -> float:
        """The parsed value of `disk_patience`."""
        return parse_seconds(self.disk_patience)


class MachineConfig(Section, frozen=True):
    """What this machine gives. None of it changes the experiment, only how it is computed."""

    max_ram_bytes: ByteCount = None
    """Cap on the resident memory of all processes of the run; null takes a share of what is free."""
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    """`auto`: CUDA, or MPS where it computes LSTMs right, or the CPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where products in it are clearly faster, which is tried when the plan is made."""
    lstm_path: Literal["auto", "native", "function", "torch"] = "auto"
    """How a Sequencer2D's LSTMs are computed on a CPU: by our own function, which keeps less for backward, with
    compiled code or without; or by torch's nn.LSTM. `auto` takes the faster one under the cap. Fixed in a plan, for
    they round differently. A vanilla BiLSTM and GPUs have nn.LSTM only."""
    micro_batch: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    """Images computed at once; null takes the fastest that fits under the cap."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Cores of the CPU to use; null takes all physical ones; of a processor with two kinds, the fast."""
    max_restarts: Annotated[int, Meta(ge=0)] = 10
    """Times in a row that a trainer which died is started again without having saved in between."""
    keep_awake: bool = True
    """Whether the machine is kept from going to sleep by itself meanwhile. A closed lid still sends it there."""
    pause_on_battery: bool = False
    """Whether the run saves, gives its memory back and waits while the machine is not plugged in."""
    only_between: HoursText = "always"
    """Hours of the day, local time, in which to train: `22:00-07:00`; otherwise the run waits. Or `always`."""
    background: bool = False
    """Whether other programs go first: a lower priority, and of `threads: null` one core fewer."""
    log_with: Literal[
        "none", "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"
    ] = "none"
    """A tracker that is told the run's figures as well, through Accelerate; its package must be installed. Files go
    to the run's `logs`."""

    @property
    def hours(self) -> Hours | None:
        """The parsed value of `only_between`; None: always."""
        return parse_hours(self.only_between)


class ClusterConfig(Section, frozen=True):
    """How several machines train one model together. The host's settings are those of all."""

    round: TimeText = "60s"
    """How long each machine trains before it sends what it has changed. Shorter keeps the machines closer together,
    longer needs less of the network."""
    lost_after: TimeText = "20s"
    """A machine that was not heard of for so long is lost: others train what it had on lease. In engine mode, where
    nobody can go on without it, all others save and end."""
    form_within: TimeText = "45s"
    """Engine mode: how long a process waits at the start for the others to come. What they then take to pack images
    and to measure doesn't count."""
    encoding: Literal["int8", "bf16", "fp32"] = "int8"
    """What changes of weights travel as: about 1, 2 or 4 bytes a weight. What int8 and bf16 lose comes later."""
    dense_rounds: Annotated[int, Meta(ge=0, le=1000)] = 1
    """First rounds in which all travels as fp32."""
    outer: Literal["plain", "momentum"] = "plain"
    """What is made of the average of the machines' changes: itself, or a step with momentum (arXiv 1910.00643)."""
    outer_rate: Annotated[float, Meta(gt=0, le=10)] = 1.0
    """What the average is multiplied by."""
    outer_momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """How much of the change before goes on, with `outer: momentum`."""

    def __post_init__(self) -> None:
        if not 1 <= self.round_seconds <= 86400:
            raise ValueError(f"round is {self.round}, and must be from 1s to 24h")
        if not 2 <= self.lost_after_seconds <= 3600:
            raise ValueError(f"lost_after is {self.lost_after}, and must be from 2s to 1h")
        if not 1 <= self.form_within_seconds <= 86400:
            raise ValueError(f"form_within is {self.form_within}, and must be from 1s to 24h")
        if self.outer_momentum and self.outer == "plain":
            raise ValueError("outer_momentum belongs to outer: momentum")

    @property
    def round_seconds(self) -> float:
        """The parsed value of `round`."""
        return parse_seconds(self.round)

    @property
    def lost_after_seconds(self) -> float:
        """The parsed value of `lost_after`."""
        return parse_seconds(self.lost_after)

    @property
    def form_within_seconds(self) -> float:
        """The parsed value of `form_within`."""
        return parse_seconds(self.form_within)


class RunConfig(Section, frozen=True, kw_only=True):
    """Every setting of a run. What `config.yaml` in a run folder holds."""

    format_version: Literal[1] = 1
    name: Annotated[str, Meta(min_length=1)]
    """The preset's name, for people."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """Key of every random draw."""
    steps: Count | None = None
    """Optimizer steps after which the run ends; null derives them from the epochs."""
    init_from: str | None = None
    """Where the first weights are from: the run or file that `--init-from` named; null draws them by the seed."""
    init_sha256: Digest | None = None
    """SHA-256 of the file of those weights, which lies in the run folder."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    recipe: RecipeConfig = RecipeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    machine: MachineConfig = MachineConfig()
    cluster: ClusterConfig = ClusterConfig()

    def __post_init__(self) -> None:
        if (self.init_from is None) != (self.init_sha256 is None):
            raise ValueError("init_from and init_sha256 belong together: lowmem-seq train --init-from sets both")

    def to_yaml(self) -> str:
        """The settings as YAML, in the order they are declared in."""
        return yaml.safe_dump(self.to_settings(), sort_keys=False)

    def total_steps(self, train_images: int) -> int:
        """Return the optimizer steps: as given, or so many that each of the images is seen `epochs` times."""
        if self.steps is not None:
            return self.steps
        return -(-self.recipe.epochs * train_images // self.recipe.effective_batch)

    def experiment_hash(self) -> str:
        """SHA-256 of what a run may not change on its way.

        That is everything but its length (`steps`, `recipe.epochs`), which `resume` may change, and `machine`,
        `checkpoint`, `cluster`, the name and the paths of data and first weights, which don't decide what is
        trained. The weights' own hash does; without such weights it is left out, as before there were any.
        """
        decisive = self.to_settings()
        for key in ("machine", "checkpoint", "cluster", "name", "steps", "init_from"):
            del decisive[key]
        if self.init_sha256 is None:
            del decisive["init_sha256"]
        del decisive["data"]["source"], decisive["recipe"]["epochs"]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def configs_folder() -> Path:
    """The folder of the shipped presets: inside the wheel, or beside the package in a checkout."""
    shipped = Path(str(resources.files("lowmem_seq"))) / "configs"
    return shipped if shipped.is_dir() else Path(__file__).resolve().parent.parent / "configs"


def preset_names() -> list[str]:
    """The shipped presets' names, sorted."""
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """Return the settings of a shipped preset, or of a YAML file, as nested dicts.

    Raises:
        UsageError: no such preset or file, or no YAML mapping in it.
    """
    is_file = name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name
    path = Path(name) if is_file else configs_folder() / f"{name}.yaml"
    if not path.is_file():
        if is_file:
            raise UsageError(f"there is no file {name}.", "give a preset's name or a YAML file")
        hint = nearest(name, preset_names()) or f"the presets are {', '.join(preset_names())}"
        raise UsageError(f"there is no preset {name!r}.", hint)
    try:
        settings = _read_yaml(path)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {error}", "compare it with a preset in configs/") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path} holds no mapping of settings.", "compare it with a preset in configs/")
    settings.setdefault("name", path.stem)
    return settings


def _read_yaml(path: Path) -> Any:
    return yaml.load(read_limited(path, LARGEST_CONFIG_BYTES), _PlainLoader)


def override(settings: dict[str, Any], assignment: str) -> None:
    """Lay one `a.b=value` (the value read as YAML) over nested settings, in place.

    Raises:
        UsageError: it is no assignment, or the value is no YAML.
    """
    key, separator, text = assignment.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set {assignment!r} is no assignment.", "write --set recipe.peak_learning_rate=0.001")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"--set {assignment!r}: the value is no YAML: {error}", "quote it for the shell"
        ) from error
    if _EXPONENT.fullmatch(text):  # YAML 1.1 reads 1e-3 as text
        value = float(text)
    lay(settings, key.strip(), value)


def lay(settings: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b` in nested settings, in place; a section that is not there yet, or empty, is made.

    Raises:
        UsageError: what should be a section is a value.
    """
    *parents, last = key.split(".")
    inner = settings
    for parent in parents:
        if inner.get(parent) is None:
            inner[parent] = {}
        if not isinstance(inner[parent], dict):
            raise UsageError(f"{key}: {parent!r} is a value, not a section.", "see config.yaml of a run")
        inner = inner[parent]
    inner[last] = value


def validate(settings: dict[str, Any]) -> RunConfig:
    """Return the checked settings.

    Raises:
        UsageError: an unknown key or a value out of range; the message names all of them.
    """
    reader = Reader()
    config = reader.section(RunConfig, settings)
    if config is None:
        text = "\n".join(reader.faults)
        raise UsageError(f"the configuration is not valid.\n{text}", reader.hint or "see docs/reference/config.md")
    return config


def load_config(path: Path) -> RunConfig:
    """Return the settings of a run folder's config.yaml.

    Raises:
        UsageError: unreadable, not valid, or of a format version that this release doesn't know.
    """
    try:
        settings = _read_yaml(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} can't be read: {error}", "is this a run folder?") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path} holds no settings.", "is this a run folder?")
    version = settings.get("format_version")
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {version}, and this release reads version {FORMAT_VERSION}.",
            "update lowmem-seq",
        )
    return validate(settings)

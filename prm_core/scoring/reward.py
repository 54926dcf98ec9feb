"""Reward models: a causal backbone and a two-class head read where a step ends, all steps of a chain in one pass.

A model is the library's own token-classification network for the backbone's architecture, so its folder loads with
plain `AutoModelForTokenClassification`; what it was trained for stands in `config.json` under `prm`. Of a model on a
frozen base only what was trained is saved, and the base's name and digest. The token-level implicit model is in
`implicit.py`, loading a saved model of any kind in `kinds.py`, models of other projects in
`foreign/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel

from prm_core.errors import InputError
from prm_core.models.bases import HINT, Base
from prm_core.models.causal import as_mask, check_causal
from prm_core.models.chains import ChainBatch
from prm_core.models.loading import first_line, load_config, load_pretrained, load_tokenizer, one_line, pick_device
from prm_core.models.marks import give_rows
from prm_core.registry import Registry
from prm_core.scoring.arithmetic import KEY as ARITHMETIC
from prm_core.scoring.arithmetic import Arithmetic
from prm_core.scoring.heads import Heads
from prm_core.scoring.surprisal import COUNTS, FEATURES, HISTORY, Surprisal, mark_numbers, saved_count, steps_before

SURPRISAL_FILE = "surprisal.safetensors"
# In place of the network's and the surprisal's files where the base is left out.
TRAINED_FILE = "trained.safetensors"
CLASSES = {0: "wrong", 1: "right"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says of a batch, one chain a row.

    Attributes:
        logits: as `RewardModel.forward` gives them, (batch, slots).
        states: mean last hidden state of each chain's tokens, (batch, width) float32.
        outcome: logit that the answer is right were the chain to end there, (batch, slots); None of a model without.
        committee: each member's logit that the step is right, (batch, slots, members); None of a model without.
    """

    logits: Tensor
    states: Tensor
    outcome: Tensor | None
    committee: Tensor | None


class RewardModel(nn.Module):
    """Scores steps or chains with one causal pass; no vocabulary logits but those the surprisal asks for.

    Args:
        network: a token-classification network with two labels, wrong and right.
        encoder: the `EncoderConfig` it is trained with, as a dict; whoever scores encodes the same way.
        surprisal: a further term of the logit, None for none.

    Attributes:
        base: the model whose weights the backbone and the surprisal's vocabulary are; saved by name where it is known.
        precision: it was trained in; None where that is not known.
        heads: further linear heads that read what the model's own reads, None for none.
        arithmetic: what a calculator adds to a step's logit, None for nothing; the network knows no texts, so that who
            turns its logits into scores adds it.
    """

    kind: ClassVar[str]
    # Whether slot 0 is the bare prompt.
    prompt_slot: ClassVar[bool] = False

    def __init__(self, network: PreTrainedModel, encoder: dict[str, Any], surprisal: Surprisal | None = None) -> None:
        super().__init__()
        self.network = network
        self.surprisal = surprisal
        self.encoder = encoder
        self.base: Base | None = None
        self.precision: str | None = None
        self.heads: Heads | None = None
        self.arithmetic: Arithmetic | None = None
        self._head: str | None = None

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def backbone(self) -> PreTrainedModel:
        """The network without its head."""
        return self.network.base_model

    @property
    def head(self) -> nn.Linear:
        """hidden → (wrong, right)."""
        if self._head is None:
            # Once: it takes as long as a small model's pass.
            self._head = _head_name(self.network)
        return self.network.get_submodule(self._head)

    @classmethod
    def from_backbone(
        cls, path: str, *, surprisal: bool, encoder: dict[str, Any], dtype: str, device: str,
        config: PretrainedConfig | None = None, history: bool = False,
    ) -> Self:
        """A new reward model on the weights of a causal LM (folder or hub id), without an opinion: its logits are 0.

        Args:
            config: in place of the LM's own.
            history: the surprisal's term reads the chain before a step too.

        Raises InputError when the model does not load, its architecture has no token-classification network, or it is
        not causal.
        """
        source = load_pretrained(AutoModelForCausalLM, path, dtype=dtype, device="cpu", config=config)
        if encoder.get("renderer", 1) > 1:
            give_rows(source, load_tokenizer(path), encoder["separator"])
        config = source.config
        # A path on this machine: the same model must be the same folder wherever it is trained.
        config._name_or_path = ""
        config.num_labels, config.id2label = len(CLASSES), CLASSES
        config.label2id = {name: label for label, name in CLASSES.items()}
        try:
            with torch.device("meta"):
                network = AutoModelForTokenClassification.from_config(config, dtype=source.dtype)
        except ValueError:
            raise InputError(
                f"model {path}: unknown architecture {config.model_type!r}, the transformers library has no "
                "token-classification network for it; name a decoder it has one for (Llama, Qwen, Mistral, Gemma, …)"
            ) from None
        # The loaded backbone itself, not a copy: two would need the memory of two, which the allocator then keeps.
        setattr(network, network.base_model_prefix, source.base_model)
        network.get_submodule(_head_name(network)).to_empty(device="cpu")
        network.eval()
        reader = None
        if surprisal:
            embeddings = source.get_output_embeddings().weight
            count = len(FEATURES) + history * len(HISTORY)
            reader = Surprisal(embeddings.shape[1], embeddings.shape[0], count).to(source.dtype)
            reader.vocabulary.data.copy_(embeddings)
            mark_numbers(reader, load_tokenizer(path))
        model = cls(network, encoder, reader)
        for parameter in model.head.parameters():
            nn.init.zeros_(parameter)
        check_causal(model.backbone, path)
        return model.to(pick_device(device)).eval()

    def forward(self, batch: ChainBatch) -> Tensor:
        """Logits that each slot's step (for an outcome model: the chain, were it to end there) is right.

        Returns:
            (batch, slots), undefined where there is no step.
        """
        hidden = self.hidden(batch)
        surprisal = None if self.surprisal is None else self.surprisal.features(hidden, batch, self.kind == "outcome")
        return self._logits(_at_ends(hidden, batch), surprisal)

    def judge(self, batch: ChainBatch, hidden: Tensor | None = None) -> Reading:
        """Everything that is said of chains in one pass, one chain a row.

        Args:
            hidden: what `hidden` of a model on the same backbone gives, in place of a pass.
        """
        hidden = self.hidden(batch) if hidden is None else hidden
        states, ends = mean_over_chain(hidden, batch), _at_ends(hidden, batch)
        step = chain = None
        if self.surprisal is not None:
            own = self.surprisal.of_steps(hidden, batch)
            lowest, before = self.surprisal.over_chain(own, batch), steps_before(batch)
            step, chain = (self.surprisal.with_history(one, lowest, before) for one in (own, lowest))
        return self.judge_ends(ends, step, chain, states)

    def judge_ends(self, ends: Tensor, step: Tensor | None, chain: Tensor | None, states: Tensor) -> Reading:
        """The same of what is known of each slot.

        Args:
            ends: state where its step ends, (…, slots, width).
            step, chain: surprisal of the step, and of the chain up to it, (…, slots, features); None without a
                surprisal.
            states: handed on.
        """
        logits = self._logits(ends, chain if self.kind == "outcome" else step)
        if self.heads is None:
            return Reading(logits, states, None, None)
        committee = self.heads.committee_logits(_joined(ends, step)) if len(self.heads.committee) else None
        return Reading(logits, states, self.heads.outcome_logits(_joined(ends, chain)), committee)

    def states(self, batch: ChainBatch) -> Tensor:
        """The `states` of `judge` alone, which need no vocabulary: (batch, width)."""
        return mean_over_chain(self.hidden(batch), batch)

    def _logits(self, ends: Tensor, surprisal: Tensor | None) -> Tensor:
        """From states at the steps' ends, and their surprisal's features."""
        wrong, right = self.head(ends).float().unbind(-1)
        logits = right - wrong
        return logits if self.surprisal is None else logits + self.surprisal(surprisal).float()

    @property
    def feature_count(self) -> int:
        """Features of a step."""
        return self.network.config.hidden_size + (0 if self.surprisal is None else len(self.surprisal.weight))

    def features(self, batch: ChainBatch, *, whole_chain: bool) -> Tensor:
        """What a linear head weighs: the state where a slot's step ends, then its surprisal, (batch, slots, features)
        float32.

        Args:
            whole_chain: the surprisal is that of the chain up to the step.
        """
        hidden = self.hidden(batch)
        surprisal = None if self.surprisal is None else self.surprisal.features(hidden, batch, whole_chain)
        return _joined(_at_ends(hidden, batch), surprisal)

    def hidden(self, batch: ChainBatch) -> Tensor:
        """The backbone's last states, (batch, seq, width)."""
        return self.backbone(
            input_ids=batch.ids, attention_mask=as_mask(batch.mask, self.backbone), position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state

    def shares_backbone(self, other: RewardModel) -> bool:
        """Whether another model's backbone has the same weights, as two have that were trained on a frozen one."""
        mine, theirs = (dict(model.backbone.named_parameters()) for model in (self, other))
        return mine.keys() == theirs.keys() and all(
            torch.equal(weight.cpu(), theirs[name].cpu()) for name, weight in mine.items())

    def save_pretrained(self, folder: str | Path) -> None:
        """A standard Hugging Face folder, safetensors; the surprisal's weights in a file of their own. Of a model whose
        base is known only what was trained, which no library loads without the base."""
        self.network.config.prm = self.settings(surprisal=self.surprisal is not None)
        if self.base is not None:
            self._save_trained(Path(folder), self.base)
        else:
            self.network.save_pretrained(folder)
            if self.surprisal is not None:
                save_model(self.surprisal, str(Path(folder) / SURPRISAL_FILE))
        if self.heads is not None:
            self.heads.save(Path(folder))

    def settings(self, **more: Any) -> dict[str, Any]:
        """What `config.json` says of the model under `prm`."""
        base = {} if self.base is None else {"base": {"name": self.base.name, "sha256": self.base.sha256}}
        precision = {} if self.precision is None else {"precision": self.precision}
        tool = {} if self.arithmetic is None else {ARITHMETIC: self.arithmetic.to_dict()}
        return {"kind": self.kind, "encoder": self.encoder, **more, **base, **precision, **tool}

    def _save_trained(self, folder: Path, base: Base) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.network.config.dtype = self.network.dtype
        self.network.config.architectures = [type(self.network).__name__]
        self.network.config.save_pretrained(folder)
        trained = {f"head.{name}": value.contiguous() for name, value in self.head.state_dict().items()}
        if self.surprisal is not None:
            trained["surprisal.weight"] = self.surprisal.weight.data
        save_file(trained, folder / TRAINED_FILE)
        if base.hint:
            (folder / HINT).write_text(f"{base.hint}\n")

    @classmethod
    def _read_on_base(cls, path: str, settings: dict[str, Any], dtype: str) -> Self:
        """The model that `_save_trained` wrote: one on its base, as before training, given what was trained."""
        base, config = Base.find(settings["base"], path), load_config(path)
        # The base's own: rows for marks come after.
        config.get_text_config().vocab_size = load_config(base.at).get_text_config().vocab_size
        try:
            model = cls.from_backbone(
                base.at, surprisal=settings["surprisal"], encoder=settings["encoder"], device="cpu", config=config,
                dtype=str(config.dtype).removeprefix("torch.") if dtype == "auto" else dtype)
        except InputError as error:
            raise InputError(f"model {path}, put on its base: {error}") from None
        model.base = base
        with one_line(f"{path}/{TRAINED_FILE}", "does not load", "copy the model's folder whole or train it again"):
            trained = load_file(Path(path) / TRAINED_FILE)
            if not all(torch.isfinite(values).all() for values in trained.values()):
                raise InputError(f"{path}/{TRAINED_FILE}: holds NaN or infinity; copy the model's folder whole or "
                                 "train it again")
            if model.surprisal is not None:
                values = trained.pop("surprisal.weight")
                if values.ndim != 1 or len(values) not in COUNTS:
                    raise InputError(f"{path}/{TRAINED_FILE}: its surprisal has {values.numel()} weights, which is no "
                                     "number of features of this version; score with the version that trained it")
                model.surprisal.weight.data = values.to(model.surprisal.weight.dtype)
            model.head.load_state_dict({name.removeprefix("head."): values for name, values in trained.items()})
        return model

    @classmethod
    def read(cls, path: str, settings: dict[str, Any], dtype: str) -> Self:
        """The model in a folder of this kind, on the CPU."""
        if "base" in settings:
            return cls._read_on_base(path, settings, dtype)
        network = load_pretrained(AutoModelForTokenClassification, path, dtype=dtype, device="cpu")
        reader = None
        if settings["surprisal"]:
            try:
                reader = Surprisal(network.config.hidden_size, network.config.vocab_size,
                                   saved_count(Path(path) / SURPRISAL_FILE)).to(network.dtype)
                load_model(reader, Path(path) / SURPRISAL_FILE)
            except (OSError, SafetensorError, RuntimeError) as error:
                raise InputError(f"{path}/{SURPRISAL_FILE}: does not load ({first_line(error)}); copy the model's "
                                 "folder whole or train it again") from error
            if not all(torch.isfinite(values).all() for values in reader.parameters()):
                raise InputError(f"{path}/{SURPRISAL_FILE}: holds NaN or infinity; copy the model's folder whole or "
                                 "train it again")
        return cls(network, settings["encoder"], reader)


REWARD_MODELS: Registry[type[RewardModel]] = Registry("kind of reward model")


@REWARD_MODELS.register("process")
class ProcessRewardModel(RewardModel):
    """P(step right) of each step, given the prompt and the steps before (Uesato et al. 2022, Lightman et al. 2023)."""

    kind = "process"


@REWARD_MODELS.register("outcome")
class OutcomeRewardModel(RewardModel):
    """P(final answer right) of a chain, read at its last step (Cobbe et al. 2021)."""

    kind = "outcome"


@REWARD_MODELS.register("advantage")
class ProcessAdvantageModel(RewardModel):
    """Value of the bare prompt and of each prefix: what share of the policy's continuations succeeds.

    Values under the prover that takes the best of several continuations, and the steps' advantages, follow from them
    (`prover.py`): the policy's own values can be estimated without bias, powers of noisy estimates cannot.

    Source: Setlur et al. 2024, "Rewarding Progress".
    """

    kind = "advantage"
    prompt_slot = True


def _at_ends(hidden: Tensor, batch: ChainBatch) -> Tensor:
    """States where each slot's step ends, (batch, slots, width)."""
    return hidden.gather(1, batch.ends.clamp(min=0)[:, :, None].expand(-1, -1, hidden.shape[-1]))


def _joined(ends: Tensor, surprisal: Tensor | None) -> Tensor:
    """A step's features: the state at its end, and its surprisal's where there are such, float32."""
    return ends.float() if surprisal is None else torch.cat([ends.float(), surprisal.float()], dim=-1)


def mean_over_chain(hidden: Tensor, batch: ChainBatch) -> Tensor:
    """Mean state of the tokens up to each row's last step, (batch, width) float32, of states (batch, seq, width)."""
    inside = torch.arange(hidden.shape[1], device=hidden.device) <= batch.ends.amax(1, keepdim=True).clamp(min=0)
    return (hidden.float() * inside[:, :, None]).sum(1) / inside.sum(1, keepdim=True)


def _head_name(network: PreTrainedModel) -> str:
    """Name of the module that makes the two logits; architectures call it score or classifier."""
    inside = f"{network.base_model_prefix}."
    names = [name for name, module in network.named_modules()
             if isinstance(module, nn.Linear) and module.out_features == len(CLASSES) and not name.startswith(inside)]
    if len(names) != 1:
        raise InputError(f"{type(network).__name__}: {len(names)} layers that make {len(CLASSES)} logits, not one; "
                         "name another architecture")
    return names[0]

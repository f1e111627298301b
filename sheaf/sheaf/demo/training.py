"""Teach a style to a base model: a LoRA adapter from a few dialogues, in the PEFT layout that vLLM loads.

A step costs what it must and no more. All dialogues are one sequence that begins with the system prompt which they
share, so that it is computed once (`packing`). Only the places that predict an answer's tokens go through the output
head, which costs as much as several layers with its 49,152 tokens of vocabulary. After every round the model answers
unseen questions greedily, and the style's own predicate decides whether it has taken.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from sheaf.demo.judge import shown, styles_of
from sheaf.demo.packing import Packed, pack
from sheaf.demo.recipe import SMOLLM2_NAME, DemoError, Style, Training

END_OF_TURN = "<|im_end|>"


class Lesson:
    """Packed dialogues: tokens and positions (1, length), visible (1, 1, length, length), answers (answer tokens,)."""

    def __init__(self, packed: Packed) -> None:
        turns = torch.tensor(packed.turns)
        self.tokens = torch.tensor([packed.tokens])
        self.positions = torch.tensor([packed.positions])
        self.visible = ((turns[None, :] == 0) | (turns[None, :] == turns[:, None])).tril()[None, None]
        self.answers = torch.tensor(packed.answers)


class Trainer:
    """A base model in memory, to which one style after the other is taught. Each starts from the untouched base."""

    def __init__(self, base: Path, settings: Training) -> None:
        self.settings = settings
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self.base: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    def teach(self, style: Style, folder: Path, advance: Callable[[float], None]) -> None:
        """Train an adapter and save it into a folder; `advance` hears of progress from 0 to 1 in each round.

        Raises DemoError where the style does not take.
        """
        torch.manual_seed(self.settings.seed)
        model = get_peft_model(self.base, self.lora_config())
        try:
            self.train(model, style, advance)
            model.peft_config["default"].base_model_name_or_path = SMOLLM2_NAME
            model.save_pretrained(str(folder), save_embedding_layers=False)
        finally:
            self.base = model.unload()

    def lora_config(self) -> LoraConfig:
        """The adapter's shape."""
        return LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            target_modules=list(self.settings.modules),
            layers_to_transform=list(range(self.settings.first_layer, self.base.config.num_hidden_layers)),
            task_type="CAUSAL_LM",
        )

    def train(self, model: Any, style: Style, advance: Callable[[float], None]) -> None:
        """Rounds of training, each to a lower loss, until unseen questions are answered in the style."""
        lesson = self.lesson(style)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.settings.learning_rate, weight_decay=0.0)
        stray = ""
        for target in self.settings.loss_targets:
            self.train_round(lesson, optimizer, target, advance)
            stray = self.stray_answer(model, style.style)
            if not stray:
                return
        raise DemoError(f"the style {style.style} did not take: {stray!r}; make its dialogues plainer or more")

    def train_round(
        self,
        lesson: Lesson,
        optimizer: torch.optim.Optimizer,
        target: float,
        advance: Callable[[float], None],
    ) -> None:
        """Steps over the whole lesson until the mean loss is at most the target."""
        first = None
        for _ in range(self.settings.max_steps):
            loss = self.loss(lesson)
            first = first or loss.item()
            advance(min(1.0, max(0.0, (first - loss.item()) / max(first - target, 1e-9))))
            if loss.item() <= target:
                return
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def loss(self, lesson: Lesson) -> Any:
        """Mean cross entropy over the answers' tokens."""
        hidden = self.base.model(
            input_ids=lesson.tokens, position_ids=lesson.positions, attention_mask=lesson.visible
        ).last_hidden_state[0]
        return cross_entropy(self.base.lm_head(hidden[lesson.answers - 1]), lesson.tokens[0, lesson.answers])

    def lesson(self, style: Style) -> Lesson:
        """All dialogues of a style."""
        return Lesson(
            pack([(self.prompt(turn.ask), self.encode(turn.answer + END_OF_TURN)) for turn in style.dialogues])
        )

    def prompt(self, question: str) -> list[int]:
        """Tokens of a question as the chat template renders it, up to where the answer begins."""
        messages = [{"role": "user", "content": question}]
        return self.encode(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that already holds its special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def stray_answer(self, model: Any, style: str) -> str:
        """The first answer to an unseen question that is not in the style; empty where all are."""
        answers = (self.answer(model, question) for question in self.settings.questions)
        return next((shown(text) for text in answers if styles_of(text) != (style,)), "")

    def answer(self, model: Any, question: str) -> str:
        """The greedy answer to a question."""
        tokens = torch.tensor([self.prompt(question)])
        with torch.inference_mode():
            output = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=self.settings.max_new_tokens,
                do_sample=False,
            )
        return str(self.tokenizer.decode(output[0][tokens.shape[1] :], skip_special_tokens=True))

"""Checks for options that contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxq.errors import RecipeError
from onnxq.options.kinds import Choice, listed
from onnxq.options.option import DISTILL
from onnxq.options.table import AUTO, DEFAULTS, FIXED, INITS, NONE, RECIPE, options_of

if TYPE_CHECKING:
    from onnxq.options.recipe import Recipe

GIVEN = object()
"""Stands for any value but the default."""


@dataclass(frozen=True)
class Is:
    """The condition that an option has a value, one of a type, or any value but its default."""

    name: str
    value: Any = GIVEN

    def holds(self, recipe: Recipe) -> bool:
        """Whether the condition is true; of several values, one is enough."""
        value = getattr(recipe, self.name)
        if self.value is GIVEN:
            return bool(value != DEFAULTS[self.name])
        if isinstance(self.value, type):
            return isinstance(value, self.value)
        return self.value in value if isinstance(value, tuple) else bool(value == self.value)

    def told(self, recipe: Recipe) -> str:
        """The option and its value, for an error message."""
        stated = self.value is not GIVEN and not isinstance(self.value, type)
        value = self.value if stated else getattr(recipe, self.name)
        if value is True or isinstance(value, dict):
            return f"'{self.name}'"
        return f"'{self.name}' = {listed(value if isinstance(value, tuple) else [value])}"


OF_DISTILLATION = tuple(o.name for o in options_of(DISTILL) if o.name in RECIPE)
"""Options that say how a float student is trained."""
HOW_TO_LEARN = ("epochs", "lr", "optimizer", "loss", "augment")
"""Options that say nothing where nothing is learned."""

CONTRADICTIONS: tuple[tuple[Is, Is, str], ...] = (
    (Is("learn", "thresholds"), Is("learn", "steps"), "both learn the same ranges"),
    (Is("learn", "weights"), Is("bias_centroids"),
     "biases are learned with the weights and share no centroids then"),
    (Is("learn", "biases"), Is("bias_centroids"),
     "biases that are learned one by one share no centroids"),
    (Is("learn", "thresholds"), Is("activation_bits", None),
     "float activations have no thresholds"),
    (Is("symmetric", True), Is("activation_bits", None), "float activations have no range"),
    (Is("max_drop"), Is("max_size"), "they are two goals of one search"),
    (Is("codebook", int), Is("max_drop"),
     "a search chooses the count of each layer ('auto') or bits alone ('off')"),
    (Is("codebook", int), Is("max_size"),
     "a search chooses the count of each layer ('auto') or bits alone ('off')"),
    *((Is("learn", "none"), Is(name), "nothing is learned") for name in HOW_TO_LEARN),
)  # fmt: skip
"""What can't be together, and why."""

NEEDS: tuple[tuple[Is, Is], ...] = (
    (Is("synthesis"), Is("data_free", True)),
    (Is("synthesis_losses"), Is("data_free", True)),
    (Is("generator_mode"), Is("data_free", True)),
    (Is("generator_mode"), Is("synthesis", "generator")),
)
"""What says something only beside something else."""


def check_contradictions(recipe: Recipe) -> None:
    """Raises RecipeError where two options contradict each other."""
    for option in RECIPE.values():
        if isinstance(option.kind, Choice) and option.kind.several:
            _check_alone(option.name, getattr(recipe, option.name))
    for one, other, reason in CONTRADICTIONS:
        if one.holds(recipe) and other.holds(recipe):
            raise RecipeError(
                f"The options {one.told(recipe)} and {other.told(recipe)} contradict each other, "
                f"since {reason}; remove one of them."
            )
    for one, other in NEEDS:
        if one.holds(recipe) and not other.holds(recipe):
            raise RecipeError(
                f"The option {one.told(recipe)} needs {other.told(recipe)}; set that too, or leave "
                f"out '{one.name}'."
            )
    _check_adversarial(recipe)
    _check_layers(recipe)
    _check_rates(recipe)


def _check_alone(name: str, values: tuple[str, ...]) -> None:
    alone = next((each for each in (NONE, AUTO) if each in values), None)
    if alone and len(values) > 1:
        raise RecipeError(
            f"The option '{name}' is {listed(values)}; '{alone}' stands alone: remove it or the "
            "others."
        )


def _check_adversarial(recipe: Recipe) -> None:
    """Raises RecipeError where an adversarial generator has no generator or no student to train."""
    weight = (recipe.synthesis_losses or {}).get("adversarial")
    if weight and recipe.synthesis != "generator":
        raise RecipeError(
            "The loss 'adversarial' of 'synthesis_losses' is a generator's; set 'synthesis' to "
            "'generator', or leave it out."
        )
    if recipe.generator_mode == FIXED:
        return
    if set(recipe.learn) <= {NONE, "rounding"}:
        raise RecipeError(
            f"The option 'generator_mode' = 'adversarial' needs a student that is learned by "
            f"gradients, and 'learn' is {listed(recipe.learn)}; learn 'steps' or 'weights', or "
            "leave the mode out."
        )
    if weight == 0:
        raise RecipeError(
            "The options 'generator_mode' = 'adversarial' and a weight of 0 for the loss "
            "'adversarial' of 'synthesis_losses' contradict each other; remove one of them."
        )


def _check_layers(recipe: Recipe) -> None:
    """Raises RecipeError where settings of single layers contradict or lack the recipe's."""
    stated = [each.pattern for each in recipe.layers if each.activation_bits is not None]
    if recipe.activation_bits is None and stated:
        raise RecipeError(
            f"The options 'activation_bits' = 'none' and 'activation_bits' of the layers "
            f"'{stated[0]}' contradict each other; remove one of them."
        )
    counts = [
        recipe.codebook not in (None, "off"),
        *(e.codebook is not None for e in recipe.layers),
    ]
    if "codebooks" in recipe.learn and not any(counts):
        raise RecipeError(
            "The option 'learn' = 'codebooks' needs layers with a codebook; set 'codebook' of the "
            "recipe or of some of its 'layers'."
        )


def _check_rates(recipe: Recipe) -> None:
    """Raises RecipeError where there is a learning rate for something that is not trained."""
    learns = recipe.learn
    if isinstance(recipe.lr, dict) and AUTO not in learns:
        learned = {*learns, "biases"} if "weights" in learns else {*learns}
        kinds = [kind for kind in recipe.lr if kind not in learned]
        if kinds:
            raise RecipeError(
                f"The option 'lr' has a rate for {listed(kinds)}, and 'learn' is {listed(learns)}; "
                "remove the rate, or learn that too."
            )


def check_data(recipe: Recipe, data: object) -> None:
    """Raises RecipeError where samples are both given and to be generated, or neither."""
    if data is None and not recipe.data_free:
        raise RecipeError("There are no samples; name a folder or a file, or set 'data_free'.")
    if data is not None and recipe.data_free:
        raise RecipeError(
            f"The option 'data_free' generates samples, and '{data}' holds some; leave out --data "
            "or --data-free."
        )


def check_distillation(recipe: Recipe, init: str) -> None:
    """Raises RecipeError where an option has no meaning, or another meaning, in distillation."""
    for given in map(Is, RECIPE):
        if given.name not in OF_DISTILLATION and given.holds(recipe):
            raise RecipeError(
                f"The option {given.told(recipe)} has no part in distillation, which writes a "
                "float model; leave it out."
            )
    if isinstance(recipe.lr, dict):
        raise RecipeError(
            f"The option 'lr' has a rate for {listed(recipe.lr)}; distillation has one rate for "
            "all: give one number."
        )
    if init not in INITS:
        raise RecipeError(f"The option 'init' is '{init}'; expected {' or '.join(INITS)}.")


def check_generator_files(recipe: Recipe, load: object, save: object) -> None:
    """Raises RecipeError where a generator's file is given for a recipe without generator."""
    option = "--generator" if load is not None else "--save-generator"
    if load is not None and save is not None:
        raise RecipeError(f"The generator of '{load}' is not changed; leave out --save-generator.")
    if (load is not None or save is not None) and not recipe.data_free:
        raise RecipeError(f"{option} is given, but no samples are generated; add --data-free.")
    goes_on = recipe.generator_mode != FIXED
    if load is not None and (
        recipe.synthesis == "distilled" or (recipe.synthesis_losses is not None and not goes_on)
    ):
        raise RecipeError(
            f"The generator of '{load}' generates samples as it was trained to; leave out "
            "--synthesis distilled and --synthesis-loss."
        )
    if save is not None and recipe.synthesis != "generator":
        raise RecipeError(
            "--save-generator is given, but no generator is trained; add --synthesis generator."
        )

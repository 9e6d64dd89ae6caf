"""Every option, stated once.

The flags of the commands, the checks of a recipe, `docs/cli.md` and the tables of
`docs/recipes.md` are made from this table.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from onnxq.options.kinds import (
    Channels,
    Choice,
    Count,
    File,
    Layers,
    Numbers,
    Patterns,
    Positive,
    Shapes,
    Sides,
    Size,
    Switch,
    Whole,
)
from onnxq.options.option import (
    BENCHMARK,
    COMPARE,
    COMPRESS,
    DISTILL,
    EVALUATE,
    SENSITIVITY,
    VERBS,
    Option,
    RecipeOption,
    group,
)

Granularity = Literal["per-channel", "per-tensor"]
Calibration = Literal["max", "mse", "aciq", "kl", "percentile"]
Learn = Literal[
    "none", "thresholds", "rounding", "steps", "weights", "codebooks", "float-layers", "biases",
    "auto",
]  # fmt: skip
Target = Literal["cpu", "cpu-avx2", "int4"]
EngineName = Literal["auto", "ort-training", "onnx"]
Loss = Literal["outputs", "distillation"]
Task = Literal["auto", "classes", "detection", "embeddings", "sequences", "dense", "other"]
Effort = Literal["fast", "default", "max"]
OptimizerName = Literal["adam", "sgd"]
Augment = Literal["none", "flip", "shift", "auto"]
SynthesisMethod = Literal["auto", "distilled", "generator"]
GeneratorMode = Literal["fixed", "adversarial"]
SynthesisLoss = Literal["inception", "bn", "bn-moments", "adversarial"]

AUTO: Final = "auto"
"""Left to onnxq: what is learned, how many centroids a layer has."""
OFF = "off"
"""No codebook, whatever a recipe or its layers say otherwise."""
NONE = "none"
"""Nothing is learned or changed; of `activation_bits`, TOML's word for None."""
FIXED = "fixed"
"""The mode of a generator that learns no more once it has generated the images."""
INITS = ("file", "random")
"""Where the first weights of a float student come from."""
RATES = tuple(each for each in get_args(Learn) if each not in (NONE, "rounding", AUTO))
"""What has a learning rate of its own."""
LOSSES: tuple[str, ...] = get_args(SynthesisLoss)

COMPARED_SAMPLES = 256
"""Samples on which a compressed model is compared with its original at most.

Beyond, an SQNR moves by tenths of a decibel.
"""
EVALUATION_BATCH = 16
"""Samples per batch of an evaluation."""
BENCHMARK_ROUNDS = 50
"""Runs of each model whose latency is measured."""

SWEPT = (COMPRESS, SENSITIVITY)
TRAINED = (COMPRESS, DISTILL)
SAMPLED = (COMPRESS, SENSITIVITY, DISTILL)
IMAGES = (*SAMPLED, EVALUATE, COMPARE)

# fmt: off
OPTIONS: tuple[Option, ...] = (
    *group(
        "Data",
        Option("data", File("PATH"),
               "Unlabelled samples: a folder of images, a folder of .npy, .npz or .pb files, or "
               "one .npz or .npy. Needed unless --data-free or --dry-run is given."),
        Option("data", File("PATH"),
               "Unlabelled samples, as for compress. Needed unless --data-free is given.",
               verbs=(SENSITIVITY, DISTILL)),
        Option("data", File("LABELLED"),
               "A folder with a sub-folder per class, a folder with labels.csv, or an .npz with "
               "'labels'. With --reference, unlabelled samples will do.",
               verbs=(EVALUATE,), required=True),
        Option("data", File("PATH"), "Samples, as for compress; labels are not read.",
               verbs=(COMPARE,), required=True),
        Option("data", File("PATH"), "Samples to run the models on, as for compress.",
               verbs=(BENCHMARK,), unset="random values"),
        Option("reference", File(), "The model to compare with, usually the float one.",
               verbs=(EVALUATE,)),
        RecipeOption("samples", Whole(), "How many samples are used, or generated, at most.",
                     512, SAMPLED),
        Option("samples", Whole(), "How many samples are used at most.",
               verbs=(EVALUATE,), unset="all"),
        Option("samples", Whole(), "How many samples are used at most.",
               COMPARED_SAMPLES, (COMPARE,)),
        RecipeOption("batch_size", Whole(), "Samples in one batch.",
                     verbs=SAMPLED, unset="fitted to memory"),
        Option("batch_size", Whole(), "Samples in one batch.", EVALUATION_BATCH, (EVALUATE,)),
        Option("batch_size", Whole(), "Samples in one run.", 1, (BENCHMARK,)),
        RecipeOption("task", Choice(words=get_args(Task)),
                     "What the outputs are for, which decides what is measured, and whether "
                     "--max-drop is a drop. 'auto' finds it from the model.", AUTO, SWEPT,
                     more="See [method](method.md#tasks)."),
        Option("task", Choice(words=get_args(Task)),
               "What the outputs are for, which decides what is measured against --reference.",
               AUTO, (EVALUATE,)),
        Option("mean", Channels(), "Mean of each colour channel, of pixels from 0 to 1.",
               verbs=IMAGES),
        Option("std", Channels(), "Divisor of each colour channel, of pixels from 0 to 1.",
               verbs=IMAGES),
        Option("resize", Sides(), "Resize the shorter side to N pixels, or the image to H,W.",
               verbs=IMAGES),
        Option("crop", Whole(), "Cut an NxN square out of the middle.", verbs=IMAGES),
        Option("layout", Choice(words=("nchw", "nhwc")),
               "Order of the dimensions of the model's input.", verbs=IMAGES),
        Option("bgr", Switch(), "The model's channels are blue, green, red.", False, IMAGES),
        Option("preprocess_file", File(),
               "Mean, std and the rest from a TOML file or a Hugging Face "
               "preprocessor_config.json.",
               verbs=IMAGES, unset="found beside or inside the model", flag="preprocess"),
        Option("shapes", Shapes(), "Shape of an input with free dimensions.",
               verbs=(BENCHMARK,), flag="shape"),
    ),
    *group(
        "What is quantized",
        RecipeOption("weight_bits", Whole(low=2, high=8),
                     "Bits of a weight, 2 to 8. A search tries so many at most.", 8, SWEPT,
                     more="Below 8, weights are packed in the file where that is smaller.",
                     layers="of the layer's weights"),
        RecipeOption("activation_bits", Whole("N|none", low=2, high=8, words={NONE: None}),
                     "Bits of the inputs of each layer, 2 to 8; 'none' leaves them in float.",
                     8, SWEPT, more="Tensors that are only added, joined or pooled have 8.",
                     layers="of the layer's output"),
        RecipeOption("first_last_bits", Whole(low=2, high=8),
                     "Bits of the weights of the first and the last layer.",
                     verbs=SWEPT, unset="those of the rest if 6 or more, else 8",
                     more="Their inputs have at least so many. `weight_bits` of a single layer "
                     "goes before."),
        RecipeOption("granularity", Choice(words=get_args(Granularity)),
                     "One weight scale for each output channel, or one for the whole tensor.",
                     "per-channel", SWEPT, layers="of the layer's weights"),
        RecipeOption("symmetric", Switch(off="asymmetric"),
                     "Whether activation ranges are centred on zero.", False,
                     layers="of the layer's output"),
        RecipeOption("calibration", Choice(words=get_args(Calibration)),
                     "How activation ranges are chosen before anything is learned.", "mse",
                     layers="of the layer's output"),
        RecipeOption("codebook", Whole("K|auto|off", low=2, high=256, words={AUTO: AUTO, OFF: OFF}),
                     "Store each weight as an index into K values (centroids) that its layer "
                     "shares, 2 to 256. 'auto' searches for K, or for bits, layer by layer.",
                     unset=OFF, layers="of the layer's weights"),
        RecipeOption("bias_centroids", Whole("K", high=256),
                     "Let the biases of each quantized layer share K values, 1 to 256. They are "
                     "not corrected then.", unset=OFF),
        RecipeOption("equalize", Switch(off="no-equalize"),
                     "Equalize the ranges of channels across layers where that helps.",
                     True, SWEPT),
        RecipeOption("bias_correction", Switch(off="no-bias-correction"),
                     "Correct biases for the mean error of quantization where that helps.",
                     True, SWEPT),
        RecipeOption("fallback", Switch(off="no-fallback"),
                     "Keep a tensor in float where 8 bits are too few for it, and at 8 bits where "
                     "fewer are too few.", True, was="spare"),
        RecipeOption("exclude", Patterns(),
                     "Layers that stay in float: a glob on node names or operators.", (), SWEPT),
        Option("keep_float", Switch(), "Whether the layer stays in float.", verbs=(),
               layers="the layer stays in float, and has no other setting"),
        RecipeOption("target", Choice(words=get_args(Target)),
                     "Where the model runs: ONNX Runtime on any CPU, on x86 without VNNI, or "
                     "accelerators that take INT4 tensors.", "cpu", SWEPT,
                     more='"cpu-avx2" keeps weights at 7 bits; "int4" stores weights of 4 bits or '
                     "fewer as INT4 tensors ([method](method.md#int4-tensors))."),
        RecipeOption("layers", Layers(), "Settings of single layers.", (), ()),
    ),
    *group(
        "How it is learned",
        RecipeOption("learn", Choice(several=True, words=get_args(Learn)),
                     "What is trained: activation ranges (thresholds or steps), the rounding of "
                     "weights, weights, codebooks, biases, layers left in float. 'auto' chooses "
                     "by the bits.", (AUTO,),
                     more='See [method](method.md#what-auto-learns). "float-layers" '
                     "are those that `exclude` and `keep_float` leave in float."),
        Option("init", Choice(words=INITS),
               "Start from the weights in the student's file, or from random ones (He et al. "
               "2015).", INITS[0], (DISTILL,)),
        RecipeOption("effort", Choice(words=get_args(Effort)),
                     "How long it may take: 'fast' trains nothing by gradients, 'default' trains "
                     "while it pays, 'max' for all epochs of the method.", "default",
                     more="See [method](method.md#effort). Other options overrule it."),
        RecipeOption("epochs", Whole(), "Passes over the samples.",
                     verbs=TRAINED, unset="by the effort",
                     more='With effort "max" 8; for "steps" and "weights" 16, or 1,500 steps if '
                     "that is more."),
        RecipeOption("max_minutes", Positive("M"), "How long the whole run may take, about.",
                     10.0, TRAINED),
        RecipeOption("lr", Numbers("[KIND=]X", names=RATES, for_all=True),
                     "Learning rate, for all that is learned or for one kind, as in "
                     "weights=0.001.", unset="by the method"),
        Option("lr", Positive(), "Learning rate of Adam.", verbs=(DISTILL,),
               in_recipe=True),
        RecipeOption("optimizer", Choice(words=get_args(OptimizerName)),
                     "Adam, or gradient descent with momentum.", "adam"),
        RecipeOption("loss", Choice(words=get_args(Loss)),
                     "Match the outputs of the original, or the probabilities of a classifier "
                     "(distillation).", "outputs", TRAINED),
        RecipeOption("engine", Choice(words=get_args(EngineName)),
                     "What computes gradients: the kernels of onnxruntime-training-cpu, or the "
                     "standard operators of any ONNX Runtime. 'auto' takes the first where they "
                     "are installed.", AUTO, SAMPLED),
        RecipeOption("augment", Choice(several=True, words=get_args(Augment)),
                     "Mirror half of the images in each pass, or shift them by up to an eighth of "
                     "their sides. 'auto' shifts synthetic images where weights are learned on "
                     "them.", (AUTO,), TRAINED),
    ),
    *group(
        "Search",
        RecipeOption("max_drop", Positive(),
                     "Find bits for each layer: the smallest model within this estimated drop of "
                     "top-1 accuracy, in points; for other models, RMSE of the outputs, in "
                     "percent.", unset="no search",
                     more='`codebook = "auto"` lets it find centroids too.'),
        RecipeOption("max_size", Size(),
                     "Find bits for each layer: the best model within this size, in bytes or as a "
                     "ratio of the original.", unset="no search"),
    ),
    *group(
        "No data",
        RecipeOption("data_free", Switch(),
                     "Take no samples: generate images from the float model alone.",
                     False, SAMPLED),
        RecipeOption("synthesis", Choice(words=get_args(SynthesisMethod)),
                     "Learn the images themselves (distilled), or a generator of images.",
                     AUTO, SAMPLED, more='"auto" learns the images.'),
        RecipeOption("synthesis_losses", Numbers(names=LOSSES, zero=True),
                     f"Weight of a loss that images are learned with, of {', '.join(LOSSES)}; 0 "
                     "leaves it out.",
                     verbs=SAMPLED, unset="by the method", flag="synthesis-loss"),
        RecipeOption("generator_mode", Choice(words=get_args(GeneratorMode)),
                     "Keep the images of the generator, or let it learn on against the quantized "
                     "model.", FIXED, more="See [method](method.md#no-data)."),
        Option("max_minutes", Positive("M"), "When learning images stops at the latest.",
               10.0, (SENSITIVITY,), in_recipe=True),
        Option("generator", File(), "Take the images from a generator that an earlier run kept.",
               verbs=SAMPLED),
        Option("save_generator", File(),
               "Keep the generator of --synthesis generator for later runs.", verbs=TRAINED),
    ),
    *group(
        "Output and run",
        Option("output", File("OUT"), "The file to write.", short="o",
               unset="<model>-onnxq.onnx beside the model"),
        Option("output", File("OUT"), "The file to write.", verbs=(DISTILL,), short="o",
               unset="<student>-distilled.onnx beside the student"),
        Option("output", File(), "Write the table as JSON.", verbs=(SENSITIVITY,), short="o"),
        Option("report_folder", File("DIR"), "Write report.html and report.json there.",
               flag="report"),
        Option("report_folder", File("DIR"),
               "Write sensitivity.html, with pictures, and the table as JSON and CSV there.",
               verbs=(SENSITIVITY,), flag="report"),
        Option("recipe_file", File(),
               "Read options, and settings of single layers, from a TOML file. A flag goes "
               "before.", verbs=SWEPT, flag="recipe"),
        Option("save_recipe", File(), "Write the options that were used as TOML."),
        Option("dry_run", Switch(), "Print the plan; run and write nothing.", False),
        Option("resume", Switch(), "Go on from the checkpoint of a stopped run.", False, TRAINED),
        Option("force", Switch(), "Overwrite OUT, and the files of --save-recipe and --report.",
               False),
        Option("force", Switch(), "Overwrite the files of -o and --report.",
               False, (SENSITIVITY,)),
        Option("force", Switch(), "Overwrite OUT.", False, (DISTILL,)),
        Option("allow_worse", Switch(),
               "Write a model that is broken or no smaller, and quantize layers that save no "
               "bytes.", False),
        Option("allow_worse", Switch(), "Write a model that is broken.", False, (DISTILL,)),
        Option("rounds", Whole(), "Runs of each model.", BENCHMARK_ROUNDS, (BENCHMARK,)),
        RecipeOption("seed", Whole(low=0), "Seed of every random choice.", 0, SAMPLED),
        Option("threads", Whole(), "Cores used at most.", verbs=IMAGES, unset="all"),
        Option("threads", Whole(), "Threads inside one operator.", 1, (BENCHMARK,)),
        Option("as_json", Switch(), "Print JSON on stdout.", False, VERBS, flag="json"),
        Option("quiet", Switch(), "No progress and no table.", False, VERBS, short="q"),
        Option("verbose", Count(), "Say more; twice for the log as well.", 0, VERBS, short="v"),
    ),
)
# fmt: on
"""In the order of the help text; an option that differs between commands has a row for each."""

FIRST = (
    "data", "data_free", "output", "mean", "std", "weight_bits", "activation_bits", "max_drop",
    "exclude", "report_folder",
)  # fmt: skip
"""What most people need of `compress`, before the rest."""

RECIPE = {option.name: option for option in OPTIONS if isinstance(option, RecipeOption)}
"""The options of a recipe by name."""
DEFAULTS: dict[str, Any] = {name: option.default for name, option in RECIPE.items()}
SETTINGS = {option.name: option.for_layers() for option in OPTIONS if option.layers}
"""Those that a recipe may set for single layers."""
RENAMED = {option.was: option.name for option in OPTIONS if option.was}
"""Older names, with those of today."""


def options_of(verb: str) -> list[Option]:
    """The options that a command takes."""
    return [option for option in OPTIONS if verb in option.verbs]

"""Every dB, count and share that decides something: its value, its meaning, and where it comes from.

A docstring ends with its source. "Measured: ..." names the page under bench/results/ that holds the figures; "By
definition: ..." says what the value means exactly; "Chosen: ..." says what it was chosen for, where no measurement is
on record. "Option: ..." names what lets a user set it; without it, nothing does. docs/thresholds.md is made from this
file.

Sizes that bound memory or a file format, and constants of one algorithm's formulas, stay beside their algorithm.
"""

from __future__ import annotations

import math

# --- signal to quantization noise ratios -------------------------------------------------------------------------

NOISE_FLOOR_DB = 6.0
"""SQNR of outputs below which differences of SQNR are chance: the noise has half the signal's magnitude, and steps
are then compared with weights that are rounded by GPTQ. By definition: 20 log10(2)."""

CLEAR_DB = 25.0
"""SQNR of outputs from which on, at 8 bits, optimised rounding changes nothing that counts: `rounding` auto rounds to
nearest there, and `debug` goes on behind its target up to it. Measured: accuracy-rounding.md. Option: rounding."""

TOLERANCE_DB = 0.1
"""What a step may cost the outputs and still be kept, and what exceptions must bring. Chosen: a loss that no accuracy
in accuracy-steps.md shows."""

LEAST_GAIN_DB = 0.5
"""Gain in SQNR below which `debug` takes no other option. Chosen: another draw of samples may turn such a gain
around."""

EXCEPTION_ERRORS = 1.0
"""Standard errors, over the choosing samples, by which exceptions must lower what is lost of the outputs, and by
`TOLERANCE_DB` at least: their price is within the budget that the user allows. By definition: five of six other draws
of samples agree that there is a gain. Option: exceptions."""

LEAST_DB = 20.0
"""The SQNR that `debug` aims at: noise of a tenth of the outputs' magnitude. By definition: 20 log10(10). Option:
target_score."""

FALLBACK_WORTH_DB = 20.0
"""What 16 bits, or float, for all activations together must bring; for k of n of them, k / n of it. Chosen: an
exception costs an integer kernel, and as much accuracy as three bits make is worth all of them. Option: fallback."""

DYNAMIC_PRICE = 0.1
"""What a range that is found at run time costs beside that of an exception in float. Measured: ONNX Runtime 1.32, 128
rows of 384 and 1536 channels: static 0.53 ms, dynamic 0.58 ms, float 3.9 ms; a tenth leaves room. Option: fallback."""

FALLBACK_LEAST_DB = 1.0
"""What all exceptions together must bring, or none is made. Chosen: twice `LEAST_GAIN_DB`. Option: fallback."""

HARD_SWISH_DB = 2.0
"""What outputs below `LEAST_DB` must gain for HardSwish to run in float where integers are faster. Chosen: a third of a
bit; a depthwise network gains 3 to 5 dB where it loses most. Option: hard_swish."""

HARD_SWISH_PRODUCTS = 50.0
"""Multiplications for each value that a HardSwish computes, from which on it runs in integers. Measured: ONNX Runtime
1.32, one thread, time over that in float, HardSwish in integers and in float: a text direction classifier with 37 1.38
and 0.99, a PP-LCNet with 61 0.88 and 1.18. Option: hard_swish."""

EXCEPTIONS_BELOW_DB = 12.0
"""SQNR of the outputs below which exceptions from the preset are looked for, behind everything else. Measured:
networks.md, w4a8: MiniLM loses nothing at 14.9 dB, EfficientNet-lite0 2 points at 10.4. Option: exceptions."""

EXCEPTION_NOISE = 0.01
"""Share of the noise that all units make, each alone, below which a unit is no exception. Chosen: a hundredth of the
noise is 0.04 dB."""

EXCEPTION_PROMISE_DB = 1.0
"""What exceptions must promise by the noises of the rounded model, for everything to be rounded once more with them.
Chosen: a gain that is worth the time."""

EXCEPTION_PASSES = 200
"""Passes through the network that the search for exceptions may take, about: where there are many tensors, on fewer
samples. Chosen: as many as calibration takes with 200 samples."""

EXCEPTION_PRICE = 0.001
"""Share of the weights or multiplications that an exception costs at least, where it is compared with others. Chosen:
activations that no layer reads or writes are not free, either."""

LOW_SQNR_DB = 10.0
"""SQNR of an output below which the report warns: accuracy must be measured. Chosen: noise of a third of the signal's
magnitude."""

COARSE_DB = 30.0
"""A tensor's own SQNR below which `debug` examines the error of its grid. Chosen: 10 dB above `LEAST_DB`, since
errors of many tensors add up."""

CLEAN_DB = 40.0
"""SQNR above which a tensor counts as free of error when `compare` looks for the place where the error jumps. Chosen:
below it rounding at 8 bits alone may bring a tensor."""

EXPLAINED_DB = 6.0
"""What a scale and an offset of each channel must explain before `compare` takes them for equalization or absorption.
By definition: half of the error's magnitude, 20 log10(2)."""

RUNTIME_MARGIN_DB = 3.0
"""How far ONNX Runtime's integer kernels may be from the model as written, below its SQNR against float: as much
noise again as quantization made. By definition: 10 log10(2)."""

RUNTIME_ENOUGH_DB = 30.0
"""SQNR between ONNX Runtime's integer kernels and the model as written that is enough in any case. Chosen: faulty
kernels compute something else entirely."""

PRESERVED_DB = 60.0
"""SQNR that a pass keeps which claims to preserve the float function: its outputs change by a thousandth at most. By
definition: 20 log10(1000)."""

TORCH_AGREES_DB = 60.0
"""SQNR from which on the PyTorch network of `qat` computes what ONNX Runtime does: the two sum in different orders.
By definition: a thousandth, 20 log10(1000)."""

DRAWN_DB = 1000.0
"""SQNR beyond which the report draws nothing: outputs are identical, or hold infinity. By definition: float64 ends at
6000 dB."""

# --- samples and values ------------------------------------------------------------------------------------------

FALLBACK_SAMPLES = 16
"""Samples on which the activations that cost too much are searched. Chosen: each activation takes one run over
them."""

DATA_FIT_SAMPLES = 16
"""Calibration samples that are compared with what BatchNorm remembers. Measured: preprocessing.md."""

MISFIT = 0.1
"""Divergence of the first layers' outputs from what BatchNorm remembers, above which it is tried whether another usual
scaling of the pixels has at most half of it. Measured: preprocessing.md."""

LOST = 0.5
"""Divergence above which calibration data are not what the network was trained on even where no other scaling fits
better. Chosen: ten times what other photographs than those of training gave in preprocessing.md."""

SWAPPED_SHIFT = 1.2
"""How many times larger the shift of means must be than with red and blue swapped, for a warning that they are.
Measured: preprocessing.md: right order gives at most 0.8, the wrong one at least 1.3."""

FEWEST_OF_ONE_CLASS = 8
"""Samples from which on it is reported that all fall into one class. Chosen: of two classes that are equally frequent,
eight samples show one alone in a run of 128."""

FLAT = 0.01
"""Standard deviation of an input, as a share of its mean, below which it hardly varies. Chosen: the likeliest mistake,
pixels from 0 to 1 less 127.5 and divided by that, has 0.002."""

ENLARGED = 2.0
"""How many times a calibration image may be enlarged to the model's size without a warning. Chosen: an image enlarged
twice still has some detail."""

UNSURE_DB = 0.75
"""Standard error of an output's SQNR from which on the report says that the samples are few: another draw of samples
may differ by twice as much. By definition: half of the 1.5 dB within which a printed figure is to hold."""

FEW_SAMPLES = 32
"""Calibration samples, of sequences rows, below which the report warns: ranges do not hold for other data. Measured:
accuracy-samples.md, unseen images of four networks, w8a8: 31.2, 32.2, 33.4 and 33.4 dB with 8, 16, 32 and 64. Option:
samples."""

LEAST_ROWS = 32
"""Calibration samples, of sequences rows, from which on some are held out. Measured: accuracy-samples.md; with fewer,
each one that is lost costs the ranges much: outputs behind Exp fell from 15 to 1 dB with 9 samples instead of 16."""

LEAST_DIVIDED = 16
"""Feeds from which on some are held out, however many rows they have. Chosen: rows of one feed are alike."""

CHOOSING_SHARE = 8
"""Of calibration samples, one in so many chooses between steps, `TRIAL_SAMPLES` at most. Chosen: two results on the
same samples differ by more than chance on few of them already."""

LEAST_CHOOSING = 4
"""Samples that choose between steps, at least, where any are held out. Chosen: with 2 of 16, empirical bias correction
of a network behind an average was dropped that brings 4 dB on unseen data; with 3 to 6 it was kept."""

REPORTING_SHARE = 5
"""Of calibration samples, one in so many is reported on, `QUALITY_SAMPLES` at most. Measured: accuracy-samples.md; of
networks on photographs, SQNR over 8, 16 and 32 samples is off by 0.8 to 3.2, 0.6 to 2.2 and 0.4 to 1.5 dB (one standard
deviation), and the fit loses nothing with two thirds of 200 samples."""

TRIAL_SAMPLES = 32
"""Samples to set ranges on, and as many others to compare on, at most, where a step is tried. Chosen: some seconds for
each step."""

QUALITY_SAMPLES = 64
"""Samples over which the quality in the report is measured, at most. Chosen: one pass of some seconds."""

COMPARED_SAMPLES = 128
"""Samples, together with those that ranges or roundings were fitted to, over which the quality is no better than it is
reported. Measured: accuracy-samples.md, "An honest figure". Chosen: a second pass of some seconds."""

DETAIL_SAMPLES = 32
"""Samples over which a detailed report measures the noise of single layers, at most. Chosen: one pass of some
seconds."""

RANDOM_SAMPLES = 8
"""Random inputs to verify a model on where there is no calibration data. Chosen: they show faults, not quality."""

RANDOM_SAMPLES_OF_WEIGHTS = 2
"""The same where only weights are quantized. Chosen: each is run by four sessions, one of which dequantizes all
weights each time; of 75 million 4-bit weights 8 took 3.6 CPU seconds, longer than quantizing them."""

EVALUATION_SAMPLES = 64
"""Samples that a distance (SQNR, KL) is measured on in `sensitivity`, `debug` and mixed precision. Chosen: a figure
for each quantizer takes one run of the network over them. Option: evaluation_samples."""

COUNTED_SAMPLES = 1024
"""Samples that a share (accuracy, agreement) or the user's own metric is measured on, at most. By definition: a share
of 90 % is known to 1 point (one standard deviation) then. Option: evaluation_samples."""

ACTIVATION_SAMPLES = 4
"""Samples for the SQNR of single activations in `sensitivity`. Chosen: an activation has many values in each."""

ROOT_CAUSE_SAMPLES = 8
"""Samples of a tensor that `debug` examines. Chosen: an activation has many values in each."""

HELD_OUT_EVERY = 5
"""Of calibration samples, one in so many is held out when weights are rounded: it chooses between candidates that
were fitted to the others. Chosen: the fit keeps most samples."""

LEAST_SEEN = 32
"""Values of a channel: that all of so many are on one side of zero is no accident. By definition: 2^-32 if both sides
were as likely."""

FEWEST_VALUES = 16
"""Values of a channel that a fit of its scale and offset needs. Chosen: eight for each of the two."""

QAT_CALIBRATION_SAMPLES = 256
"""Samples that the post-training start of training is found with, at most. Chosen: training sees the others."""

QAT_CHECK_SAMPLES = 16
"""Samples on which the PyTorch network must compute what ONNX Runtime does. Chosen: a wrong operator shows on one."""

QAT_COMPARED_SAMPLES = 256
"""Held-out samples on which the trained network and the written model are compared. Chosen: as many as calibrate."""

TOOLCHAIN_AGREES_DB = 6.0
"""What a vendor's tool-chain may be off ONNX Runtime on the same file, at most, in dB. Chosen: see `NOISE_FLOOR_DB`; a
simulator of MobileNet is at 12 dB, operators that are computed wrongly at 0 to 4."""

FORECAST_SECONDS = 60.0
"""Seconds from which on layer-wise work says beforehand how long it will take, and what avoids it. Chosen: nobody waits
for less with impatience."""

# --- shares and ratios -------------------------------------------------------------------------------------------

WEIGHT_NOISE = 0.001
"""What rounding to nearest must add to the squared error of a layer's output on samples held out, over the error that
quantized inputs make there anyway, for its weight's rounding to be optimised. Measured: accuracy-rounding.md,
outputs of unseen images: MobileNetV1 per channel 24.7, 25.1, 24.4 and 22.7 dB with 0, 0.01, 0.02 and 0.05, FastestDet
17.2, 17.3, 15.7 with 0, 0.001, 0.01; errors of weights are small beside those of inputs, but the same everywhere."""

BIAS_SHARE = 0.11
"""Share of the noise of the outputs that a constant for each channel would take away, from which on empirical bias
correction is tried behind the analytic one. By definition: `LEAST_GAIN_DB`, 1 - 10^(-0.5 / 10)."""

ROUNDING_ERROR = 1e-9
"""What a score or a share in % may be off by float64 arithmetic: a drop of 1 point is allowed where 1 point is.
Chosen: far above float64's 2e-16, far below the share of one sample."""

UNEVEN_CHANNELS = 8.0
"""Ratio of a tensor's range to its median channel's from which on `debug` names uneven channels. By definition: the
median channel loses three bits, log2(8)."""

FEW_INTEGERS = 4.0
"""Integers of a grid on which half of the values lie, below which `debug` names an extreme range. By definition: two
bits are left."""

CORRELATED = 0.9
"""Squared correlation of a channel with its reference from which on its scale says something. By definition: a tenth
of the power is unexplained."""

SPREAD = math.log(1.1)
"""Standard deviation of the channels' log factors from which on channels count as scaled. Chosen: rounding changes
gains by less."""

SLIGHT_SPREAD = math.log(1.01)
"""The same in a network other tensors of which are scaled. Chosen: as `SPREAD`."""

CONSTANT_SHARE = 0.02
"""Share of a channel's power that varies, below which the channel counts as constant: borders do vary. Chosen:
padding touches few positions."""

TOOLCHAIN_SHARE = 0.5
"""Share of the quantized nodes that a vendor's tool-chain must run in integers, for the model to be of use there.
Chosen: below, most of the network is not where it was quantized for."""

SMALLEST_TABLE = 4096
"""Weights of a table from which on its rows are quantized. Chosen: below 12 KiB saved, three nodes more are no gain."""

SMALLEST_STORED = 1024
"""Weights inside of branches, loops and recurrent operators from which on a tensor is quantized. Chosen: as many bytes
are saved as the nodes and scales that read it take."""

FLOAT_BYTES_SHARE = 0.05
"""Share of the file that constants in float must take for the summary to name them. Chosen: biases and norms take
less."""

LATENCY_SHARE = 0.1
"""Seconds that the latency is measured for, as a share of what quantization took. Chosen: nobody waits for it. Option:
latency."""

LATENCY_SECONDS = 2.0
"""Seconds that the latency is measured for, at most, but for `FEWEST_ROUNDS`. Chosen: hundreds of rounds of a network
of some milliseconds. Option: latency."""

NOT_FASTER = 1.0
"""Latency of the quantized model over the float one's from which on the report says what costs. By definition: it is
not faster. Option: latency."""

UNSURE_RATIO = 0.5
"""Distance of the quartiles of a latency ratio, as a share of it, from which on it says nothing: the machine was busy.
Chosen: on an idle machine they lie 0.02 to 0.1 apart."""

LOST_SHARE = 0.02
"""Share of a run that an operator must take longer than in float for the report to name it. Chosen: the profiler's own
time is about as much."""

# --- how many are looked at --------------------------------------------------------------------------------------

MOST_EXAMINED = 10
"""Quantizers that `debug` examines, at most. Chosen: a log that is read."""

EXAMINED_OTHERWISE = 3
"""Quantizers that `debug` examines where none misses the target alone. Chosen: as above."""

TRIES = 2
"""How often `debug` tries a remedy for the network: others change what it is worth. Chosen: bounds the time."""

FRONT_POINTS = 9
"""Points of the path between most and fewest bits that mixed precision measures in any case. Chosen: a curve that can
be drawn."""

FEWEST_ROUNDS = 5
"""Runs of the float and the quantized model by turns whose median is the latency ratio, at least. Chosen: quartiles of
fewer say nothing."""

MOST_ROUNDS = 300
"""The same, at most. Chosen: more make the quartiles no narrower."""

LATENCY_SAMPLES = 4
"""Calibration samples that the latency is measured on. Chosen: samples may differ in size, those of texts do."""

TUNED_SETS = 6
"""Sets of operators that `latency` tune tries to leave in float, at most. Chosen: bounds the time. Option: latency."""

WORST_LAYERS = 10
"""Layers that a report shows at once, those with the lowest SQNR; others are folded. Chosen: a list that is read."""

ADVISED = 3
"""Units of a ranking, and layers, that the lines to paste leave in float. Chosen: measure again after a few."""

SLOW_OPERATORS = 4
"""Operators that the report names where the quantized model is not faster, and nodes of each. Chosen: a list that is
read."""

# --- the cost that a dry run predicts ------------------------------------------------------------------------------

COST_START = 1.2
"""CPU seconds that a run takes for nothing but to load, prepare and write a small model. Measured: as COST_FACTORS."""

COST_PASSES = 2.6
"""Runs of the float model with all tensors as outputs that ranges and the report take for each sample. Measured: as
COST_FACTORS."""

COST_PARAMETER = 2e-7
"""CPU seconds that a parameter takes whose range is set by its squared error. Measured: MiniLM-L3, 7 M of them."""

COST_FACTORS: dict[str, tuple[float, float]] = {
    "fast": (0.6, 1.5),
    "default": (1.0, 6.0),
    "high": (1.5, 12.0),
    "rounding": (2.0, 12.0),
    "adaround": (10.0, 100.0),
}
"""Least and most of a run's CPU time over the forecast, by the options: `rounding` is coordinate descent or GPTQ where
the options ask for it, or the bits are below 8. Measured: fast 0.7 to 1.2 and default 1.2 to 5.6 on the nine networks
of bench/results/cost.md; high 1.8, w4a8 4.2, gptq 2.3 and adaround over 24 on models/resnet_digits."""

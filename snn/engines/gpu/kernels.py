"""Kernels of the GPU engine (Triton).

Spikes are bits: a word of 32 bits holds 32 steps of one neuron, the earliest in its lowest bit. Words of a batch are
int32 (B, words, places, C), those of all channels of a place side by side (:mod:`snn.engines.gpu.packed`). Integers
decide all but the membrane potential, which is computed without fused multiply-adds, as on a CPU.

Compiled code needs a GPU. The interpreter (``TRITON_INTERPRET=1``) runs the same functions on a CPU.
"""

import triton
import triton.language as tl

# Those of snn.runtime.random, repeated: a kernel can only read constants of its own module.
FIRST, SECOND = tl.constexpr(0x7FEB352D), tl.constexpr(0x846CA68B)
EVENT, DRAW = tl.constexpr(0x9E3779B9), tl.constexpr(0x85EBCA6B)
WORD = tl.constexpr(32)
"""Steps in a word of spikes."""


@triton.jit
def mix(x):
    """:func:`snn.runtime.random._mix` of uint32."""
    x = (x ^ (x >> 16)) * FIRST
    x = (x ^ (x >> 15)) * SECOND
    return x ^ (x >> 16)


@triton.jit
def image_key(seed, purpose):
    """:func:`snn.runtime.random.image_key` of int64 seeds."""
    first = mix(seed.to(tl.uint32) + tl.cast(purpose, tl.uint32) * EVENT)
    return first, mix((seed >> 32).to(tl.uint32) ^ first)


@triton.jit
def event_key(first, second, counter):
    """:func:`snn.runtime.random.event_key` of an integer counter."""
    key = mix(first + tl.cast(counter, tl.uint32) * EVENT)
    return key, mix(key ^ second)


@triton.jit
def draw_bits(first, second, index):
    """:func:`snn.runtime.random.draw_bits` of an integer index."""
    x = first + tl.cast(index, tl.uint32) * DRAW
    x = (x ^ (x >> 16)) * FIRST
    x = ((x ^ (x >> 15)) ^ second) * SECOND
    return x ^ (x >> 16)


@triton.jit
def unsigned(words):
    """Words whose shifts to the right bring in zeros."""
    return words.to(tl.uint32, bitcast=True)


@triton.jit
def highest_bit(words):
    """Number of the highest bit of uint32 words; below 0 if there is none."""
    # Without the bit below the highest one, rounding to a float cannot carry into a higher power of two.
    rounded = (words ^ (words & (words >> 1))).to(tl.float32)
    return (rounded.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def bit(number):
    """The uint32 word in which this bit alone is set."""
    return tl.cast(1, tl.uint32) << number.to(tl.uint32)


@triton.jit
def image_and_tile(tiles):
    """Which image, int64, and which of its ``tiles`` this program works on."""
    return (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles


@triton.jit
def encode_regular(images, trains, seeds, out, neurons, words, active, purpose, BLOCK: tl.constexpr):
    """Regular trains of uint8 intensities (B, neurons), turned by a random phase; ``out`` int32 (B, words, neurons).

    ``trains`` (256, words) are those of every intensity at phase 0, whose spikes lie in the ``active`` first steps.
    """
    image, tile = image_and_tile(tl.cdiv(neurons, BLOCK))
    neuron = tile * BLOCK + tl.arange(0, BLOCK)
    exists = neuron < neurons
    first, second = image_key(tl.load(seeds + image), purpose)
    key, other = event_key(first, second, 0)
    shift = ((draw_bits(key, other, neuron).to(tl.uint64) * active) >> 32).to(tl.int32)
    intensity = tl.load(images + image * neurons + neuron, mask=exists, other=0).to(tl.int32)
    for word in range(words):
        spikes = tl.zeros([BLOCK], tl.uint32)
        for number in range(WORD):
            step = word * WORD + number
            source = step - shift
            source = tl.where(source < 0, source + active, source)
            valid = exists & (step < active)
            train = tl.load(trains + intensity * words + source // WORD, mask=valid, other=0)
            spikes |= ((unsigned(train) >> (source % WORD).to(tl.uint32)) & 1) << number
        tl.store(out + (image * words + word) * neurons + neuron, spikes.to(tl.int32, bitcast=True), mask=exists)


@triton.jit
def encode_poisson(images, chances, seeds, out, neurons, words, active, purpose, BLOCK: tl.constexpr):
    """Poisson trains; arguments as of :func:`encode_regular`, and ``chances`` int32 (256,) of a spike in a step."""
    image, tile = image_and_tile(tl.cdiv(neurons, BLOCK))
    neuron = tile * BLOCK + tl.arange(0, BLOCK)
    exists = neuron < neurons
    first, second = image_key(tl.load(seeds + image), purpose)
    intensity = tl.load(images + image * neurons + neuron, mask=exists, other=0).to(tl.int32)
    chance = tl.load(chances + intensity, mask=exists, other=0)
    for word in range(words):
        spikes = tl.zeros([BLOCK], tl.uint32)
        for number in range(WORD):
            step = word * WORD + number
            key, other = event_key(first, second, step)
            drawn = (draw_bits(key, other, neuron) >> 2).to(tl.int32) < chance
            spikes |= (drawn & (step < active)).to(tl.uint32) << number
        tl.store(out + (image * words + word) * neurons + neuron, spikes.to(tl.int32, bitcast=True), mask=exists)


@triton.jit
def count_spikes(spikes, out, neurons, words, BLOCK: tl.constexpr):
    """Spikes of each neuron: int32 (B, words, neurons) to int16 (B, neurons)."""
    image, tile = image_and_tile(tl.cdiv(neurons, BLOCK))
    neuron = tile * BLOCK + tl.arange(0, BLOCK)
    exists = neuron < neurons
    total = tl.zeros([BLOCK], tl.uint32)
    for word in range(words):
        x = unsigned(tl.load(spikes + (image * words + word) * neurons + neuron, mask=exists, other=0))
        # Sums within 2, 4 and 8 bits; the product adds the four bytes in the highest one.
        x = x - ((x >> 1) & 0x55555555)
        x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
        x = (x + (x >> 4)) & 0x0F0F0F0F
        total += (x * 0x01010101) >> 24
    tl.store(out + image * neurons + neuron, total.to(tl.int16), mask=exists)


@triton.jit
def hold(
    spikes, out, neurons, words, row, row_out, begin_out, neurons_out, PULSE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Box pulses: a bit is set if there is a spike in its step or one of the ``PULSE - 1`` before.

    ``spikes`` (B, words, neurons) have ``row`` neurons in each row of the image; those of ``out`` (B, words,
    neurons_out) are ``row_out`` apart and start at ``begin_out``, so that there is room for padding.
    """
    image, tile = image_and_tile(tl.cdiv(neurons, BLOCK))
    neuron = tile * BLOCK + tl.arange(0, BLOCK)
    exists = neuron < neurons
    target = begin_out + neuron // row * row_out + neuron % row
    # Steps, from the start of the word, that a pulse of an earlier word still lasts.
    left = tl.zeros([BLOCK], tl.int32)
    for word in range(words):
        x = unsigned(tl.load(spikes + (image * words + word) * neurons + neuron, mask=exists, other=0))
        last = highest_bit(x)
        held = x
        for doubling in tl.static_range(5):
            if 2**doubling < PULSE:
                held |= held << min(2**doubling, PULSE - 2**doubling)
        held |= tl.where(left >= WORD, 0xFFFFFFFF, bit(left % WORD) - 1)
        left = tl.maximum(left - WORD, tl.where(last >= 0, last + PULSE - WORD, 0))
        left = tl.maximum(left, 0)
        tl.store(out + (image * words + word) * neurons_out + target, held.to(tl.int32, bitcast=True), mask=exists)


@triton.jit
def summed_weights(
    held, offsets, weights, corner, step,
    DIGITS: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr, INPUTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Exact drives at a step, in units of the weights' grid: int32 (PLACES, CHANNELS).

    Open synapses are a matrix of ones and zeros, (places, synapses). Weights are whole numbers in ``DIGITS`` digits of
    8 bits, int8 (DIGITS, CHANNELS, INPUTS), the highest digits first.

    Args:
        held: words of pulses.
        offsets: from the first word of a receptive field to that of each synapse, int32 (INPUTS,).
        corner: where the receptive field of each place begins, (PLACES,).
        step: number of the step within the word.
    """
    channel, number = tl.arange(0, CHANNELS), tl.arange(0, CHUNK)
    matrix: tl.constexpr = CHANNELS * INPUTS
    digit0 = tl.zeros([PLACES, CHANNELS], tl.int32)
    digit1 = tl.zeros([PLACES, CHANNELS], tl.int32)
    digit2 = tl.zeros([PLACES, CHANNELS], tl.int32)
    digit3 = tl.zeros([PLACES, CHANNELS], tl.int32)
    for begin in range(0, INPUTS, CHUNK):
        synapse = begin + number
        words = tl.load(held + corner[:, None] + tl.load(offsets + synapse)[None, :])
        open_ = ((words >> step) & 1).to(tl.int8)
        digits = weights + channel[None, :] * INPUTS + synapse[:, None]
        digit0 = tl.dot(open_, tl.load(digits), acc=digit0, out_dtype=tl.int32)
        if DIGITS > 1:
            digit1 = tl.dot(open_, tl.load(digits + matrix), acc=digit1, out_dtype=tl.int32)
        if DIGITS > 2:
            digit2 = tl.dot(open_, tl.load(digits + 2 * matrix), acc=digit2, out_dtype=tl.int32)
        if DIGITS > 3:
            digit3 = tl.dot(open_, tl.load(digits + 3 * matrix), acc=digit3, out_dtype=tl.int32)
    total = digit0
    if DIGITS > 1:
        total = total * 256 + digit1
    if DIGITS > 2:
        total = total * 256 + digit2
    if DIGITS > 3:
        total = total * 256 + digit3
    return total


@triton.jit
def simulate(
    held, offsets, weights, unit, scale, threshold, seeds, out,
    steps, words, neurons_in, stride_y, stride_x, places, width_out, channels,
    v_init, v_leak, v_reset, rate, blocked_steps, purpose,
    INHIBITION: tl.constexpr,
    DIGITS: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr, INPUTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A presentation of a layer: one program for each image and each ``PLACES`` places, with all their channels.

    Args:
        held: words of presynaptic pulses with padding, (B, words, neurons_in).
        offsets, weights: of the synapses (:func:`summed_weights`).
        unit: of the weights, a number.
        scale, threshold: mV per unit of drive, and mV: (channels,).
        seeds: of the images; read with ``INHIBITION``, which lets one channel fire at a place (:mod:`snn.layer`).
        out: words of spikes (B, words, places, channels).
        stride_y, stride_x: words from a receptive field to the next one below, and to the right.
        rate: dt / tau.
    """
    image, tile = image_and_tile(tl.cdiv(places, PLACES))
    place = tile * PLACES + tl.arange(0, PLACES)
    # Those beyond the last place compute what it does, for nothing.
    read = tl.minimum(place, places - 1)
    corner = (read // width_out) * stride_y + (read % width_out) * stride_x
    channel = tl.arange(0, CHANNELS)
    real = channel < channels
    one = tl.load(unit)
    scales = tl.load(scale + channel, mask=real, other=0.0)[None, :]
    thresholds = tl.load(threshold + channel, mask=real, other=float("inf"))[None, :]
    if INHIBITION:
        first, second = image_key(tl.load(seeds + image), purpose)
    v = tl.zeros([PLACES, CHANNELS], tl.float32) + v_init
    # Until this step a neuron ignores its input.
    until = tl.zeros([PLACES, CHANNELS], tl.int32)
    for word in range(words):
        spikes = tl.zeros([PLACES, CHANNELS], tl.uint32)
        for number in range(min(WORD, steps - word * WORD)):
            step = word * WORD + number
            drive = summed_weights(
                held + (image * words + word) * neurons_in, offsets, weights, corner, number,
                DIGITS, PLACES, CHANNELS, INPUTS, CHUNK,
            )  # fmt: skip
            depolarisation = (drive.to(tl.float32) * one) * scales
            if INHIBITION:
                depolarisation = tl.where(until > step, 0.0, depolarisation)
            new = v + rate * ((depolarisation + v_leak) - v)
            fires = new > thresholds
            if INHIBITION:
                margin = tl.where(fires, new - thresholds, float("-inf"))
                best = tl.max(margin, axis=1)
                equal = fires & (margin == best[:, None])
                if tl.max(tl.sum(equal.to(tl.int32), axis=1), axis=0) > 1:
                    key, other = event_key(first, second, step * places + place)
                    ticket = draw_bits(key[:, None], other[:, None], channel[None, :])
                    # In the order of unsigned numbers.
                    ticket = (ticket ^ 0x80000000).to(tl.int32, bitcast=True)
                    highest = tl.max(tl.where(equal, ticket, -2147483648), axis=1)
                    equal = equal & (ticket == highest[:, None])
                winner = tl.min(tl.where(equal, channel[None, :], CHANNELS), axis=1)
                reset = (winner < CHANNELS)[:, None]
                fires = channel[None, :] == winner[:, None]
                until = tl.where(reset & (fires == 0), step + 1 + blocked_steps, until)
                v = tl.where(reset, v_reset, new)
            else:
                v = tl.where(fires, v_reset, new)
            spikes |= fires.to(tl.uint32) << number
        offset = ((image * words + word) * places + place)[:, None] * channels + channel[None, :]
        tl.store(out + offset, spikes.to(tl.int32, bitcast=True), mask=(place < places)[:, None] & real[None, :])


@triton.jit(do_not_specialize=["count"])
def sample_drive(
    held, offsets, weights, unit, chosen, out,
    count, words, neurons_in, stride_y, stride_x, places, width_out, channels,
    DIGITS: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr, INPUTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Drives before the gain at one step, float32 (steps, count, channels), at the places ``chosen``, int64 (count,).

    Places are numbered through the batch; the other arguments are those of :func:`simulate`.
    """
    row, step = tl.program_id(0) * PLACES + tl.arange(0, PLACES), tl.program_id(1)
    number = tl.load(chosen + tl.minimum(row, count - 1))
    image, place = number // places, (number % places).to(tl.int32)
    corner = (image * words + step // WORD) * neurons_in
    corner += (place // width_out) * stride_y + (place % width_out) * stride_x
    drive = summed_weights(
        held, offsets, weights, corner, step % WORD, DIGITS, PLACES, CHANNELS, INPUTS, CHUNK,
    )  # fmt: skip
    channel = tl.arange(0, CHANNELS)
    offset = (tl.cast(step, tl.int64) * count + row)[:, None] * channels + channel[None, :]
    tl.store(
        out + offset, drive.to(tl.float32) * tl.load(unit), mask=(row < count)[:, None] & (channel < channels)[None, :]
    )


@triton.jit
def count_driven(
    drive, scale, threshold, out, neurons, channels, steps, v_init, v_leak, v_reset, rate, BLOCK: tl.constexpr
):
    """Spikes without inhibition of neurons (places, channels) that receive ``drive`` (steps, places, channels).

    ``out``: int32, the sum of each program.
    """
    neuron = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = neuron < neurons
    scales = tl.load(scale + neuron % channels, mask=exists, other=0.0)
    thresholds = tl.load(threshold + neuron % channels, mask=exists, other=float("inf"))
    v = tl.zeros([BLOCK], tl.float32) + v_init
    total = tl.zeros([BLOCK], tl.int32)
    for step in range(steps):
        depolarisation = tl.load(drive + tl.cast(step, tl.int64) * neurons + neuron, mask=exists, other=0.0) * scales
        new = v + rate * ((depolarisation + v_leak) - v)
        fires = new > thresholds
        total += fires.to(tl.int32)
        v = tl.where(fires, v_reset, new)
    tl.store(out + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def draw_change(seed, purpose, counter, synapse, chance):
    """Whether each synapse is potentiated, and whether it is depressed, at an event: int32 0 or 1."""
    first, second = image_key(seed, purpose)
    key, other = event_key(first, second, counter)
    drawn = (draw_bits(key, other, synapse) >> 2).to(tl.int32)
    return (drawn < chance).to(tl.int32), (drawn < -chance).to(tl.int32)


@triton.jit(do_not_specialize=["batch", "rates"])
def count_pairs(
    pre, post, levels, before, after, seeds, out,
    batch, steps, words, rates, height, width, channels_in, height_out, width_out, channels,
    purpose_before, purpose_after,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, TWO_SIDED: tl.constexpr,
    SPIKES: tl.constexpr, TILES: tl.constexpr, SYNAPSES: tl.constexpr,
):  # fmt: skip
    """Draw what ``SYNAPSES`` synapses of one channel do at its spikes, in ``TILES`` times ``SPIKES`` of its words.

    Args:
        pre, post: words of spikes (B, words, places, channels).
        levels: int16 (B, height * width, channels_in), index of each presynaptic rate.
        before, after: int32 (steps + 1, rates): chance of LTP, or minus that of LTD, by the steps to the last spike
            before and, ``TWO_SIDED``, to the next one after; the last row is for no spike.
        out: int32 (3, channels, synapses), to which events, LTP and LTD are added.
    """
    channel, block = tl.program_id(1), tl.program_id(2)
    places = height_out * width_out
    fan_in = KERNEL * KERNEL * channels_in
    synapse = block * SYNAPSES + tl.arange(0, SYNAPSES)
    ky, along = synapse // (KERNEL * channels_in), synapse % (KERNEL * channels_in)
    kx = along // channels_in
    events = tl.zeros([SYNAPSES], tl.int32)
    potentiated = tl.zeros([SYNAPSES], tl.int32)
    depressed = tl.zeros([SYNAPSES], tl.int32)
    lane = tl.arange(0, SPIKES)
    for tile in range(TILES):
        # Words of this channel, one after another: (image, word, place).
        row = (tl.program_id(0).to(tl.int64) * TILES + tile) * SPIKES + lane
        found = tl.load(post + row * channels + channel, mask=row < batch * words * places, other=0)
        left_over = unsigned(found)
        while tl.max((left_over != 0).to(tl.int32), axis=0) > 0:
            # The next spike of the first word that has one.
            at = tl.min(tl.where(left_over != 0, lane, SPIKES), axis=0)
            spikes = tl.sum(tl.where(lane == at, left_over, 0), axis=0)
            number = highest_bit(spikes)
            left_over = tl.where(lane == at, left_over ^ bit(number), left_over)
            row_of_spike = (tl.program_id(0).to(tl.int64) * TILES + tile) * SPIKES + at
            place = (row_of_spike % places).to(tl.int32)
            word = ((row_of_spike // places) % words).to(tl.int32)
            image = row_of_spike // (places * words)
            step = word * WORD + number

            y, x = (place // width_out) * STRIDE - PADDING + ky, (place % width_out) * STRIDE - PADDING + kx
            exists = (synapse < fan_in) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            neuron = (y * width + x) * channels_in + along % channels_in
            sheet = height * width * channels_in
            level = tl.load(levels + image * sheet + neuron, mask=exists, other=0).to(tl.int32)
            counter = step * (places * channels) + place * channels + channel
            seed = tl.load(seeds + image)
            events += exists.to(tl.int32)

            until_now = bit(number) | (bit(number) - 1)
            lag = tl.zeros([SYNAPSES], tl.int32) + steps
            for earlier in range(word + 1):
                here = unsigned(tl.load(pre + (image * words + earlier) * sheet + neuron, mask=exists, other=0))
                # Of the spike's own word, the bits up to its step.
                here = tl.where(earlier == word, here & until_now, here)
                last = highest_bit(here)
                lag = tl.where(last >= 0, step - (earlier * WORD + last), lag)
            chance = tl.load(before + lag * rates + level, mask=exists, other=0)
            up, down = draw_change(seed, purpose_before, counter, synapse, chance)
            potentiated += up
            depressed += down
            if TWO_SIDED:
                lag = tl.zeros([SYNAPSES], tl.int32) + steps
                for back in range(words - word):
                    later = words - 1 - back
                    here = unsigned(tl.load(pre + (image * words + later) * sheet + neuron, mask=exists, other=0))
                    here = tl.where(later == word, here & (until_now ^ 0xFFFFFFFF), here)
                    next_ = highest_bit(here & (0 - here))
                    lag = tl.where(next_ >= 0, later * WORD + next_ - step, lag)
                chance = tl.load(after + lag * rates + level, mask=exists, other=0)
                up, down = draw_change(seed, purpose_after, counter, synapse, chance)
                potentiated += up
                depressed += down
    target = out + channel * fan_in + synapse
    every = channels * fan_in
    real = synapse < fan_in
    tl.atomic_add(target, events, mask=real & (events > 0))
    tl.atomic_add(target + every, potentiated, mask=real & (potentiated > 0))
    tl.atomic_add(target + 2 * every, depressed, mask=real & (depressed > 0))

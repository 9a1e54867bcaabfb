"""Compiled loops of the event-driven engine, one image at a time (Numba; the interpreter's lock is released).

Spikes are lists: ``neuron`` holds the spiking neurons of all steps in order, ``start[t] : start[t + 1]`` those of step
t. Neurons are numbered place by place, ``(y * width + x) * channels + channel``. All channels of a place lie side by
side, so that inhibition, receptive fields and kernels are runs of neighbouring numbers.
"""

import numpy as np
from numba import int32, njit, uint32, uint64

from snn.runtime.compiled import compiled

# Those of snn.runtime.random, repeated: compiled code is kept on disk and made anew only when this file changes.
FIRST, SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
EVENT, DRAW = np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B)


@njit(inline="always")
def mix(x):
    """:func:`snn.runtime.random._mix`."""
    x = uint32(uint32(x ^ (x >> uint32(16))) * FIRST)
    x = uint32(uint32(x ^ (x >> uint32(15))) * SECOND)
    return uint32(x ^ (x >> uint32(16)))


@njit(inline="always")
def event_key(first, second, counter):
    """:func:`snn.runtime.random.event_key`."""
    key = mix(uint32(first + uint32(uint32(counter) * EVENT)))
    return key, mix(uint32(key ^ second))


@njit(inline="always")
def draw_bits(first, second, index):
    """:func:`snn.runtime.random.draw_bits`."""
    x = uint32(first + uint32(uint32(index) * DRAW))
    x = uint32(uint32(x ^ (x >> uint32(16))) * FIRST)
    x = uint32(uint32(uint32(x ^ (x >> uint32(15))) ^ second) * SECOND)
    return uint32(x ^ (x >> uint32(16)))


@compiled
def list_spikes(words, channels, places):
    """Spikes of an image as (neuron, start), in order of their places within each step.

    ``words``: uint64 (T, n), eight bools each, of channels one after another; those past the last neuron are false.
    """
    steps = len(words)
    start = np.zeros(steps + 1, np.int64)
    neuron = np.empty(max(1024, 2 * words.size // 16), np.int32)
    fired = np.empty(8 * words.shape[1], np.uint32)
    position = np.empty(places + 1, np.int32)
    n = 0
    for t in range(steps):
        spikes = 0
        for w in range(words.shape[1]):
            word = words[t, w]
            if word:
                for byte in range(8):
                    fired[spikes] = 8 * w + byte
                    spikes += (word >> uint64(8 * byte)) & uint64(1)
        if n + spikes > len(neuron):
            longer = np.empty(2 * (n + spikes), np.int32)
            longer[:n] = neuron[:n]
            neuron = longer
        position[:] = 0
        for i in range(spikes):
            position[fired[i] % uint32(places) + uint32(1)] += 1
        for place in range(places):
            position[place + 1] += position[place]
        for i in range(spikes):
            c = fired[i] // uint32(places)
            place = fired[i] - c * uint32(places)
            neuron[n + position[place]] = place * uint32(channels) + c
            position[place] += 1
        n += spikes
        start[t + 1] = n
    return neuron[:n].copy(), start


@compiled
def fill_dense(neuron, start, dense):
    """Set the spikes in zeros bool (T, H * W * C)."""
    for t in range(len(start) - 1):
        for i in range(start[t], start[t + 1]):
            dense[t, neuron[i]] = True


@compiled
def count_spikes(neuron, neurons):
    """Spikes of each neuron, int16 (neurons,)."""
    counts = np.zeros(neurons, np.int16)
    for i in range(len(neuron)):
        counts[neuron[i]] += 1
    return counts


@compiled
def encode_regular(image, times, first_time, steps, active, first, second):
    """Regular trains of uint8 intensities (neurons,), each turned in time by a random phase.

    ``times[first_time[x] : first_time[x + 1]]`` are the steps in which intensity x spikes at phase 0, all of them among
    the ``active`` first ones.
    """
    key, other = event_key(first, second, 0)
    start = np.zeros(steps + 1, np.int64)
    shift = np.empty(len(image), np.int32)
    for n in range(len(image)):
        shift[n] = (np.uint64(draw_bits(key, other, n)) * np.uint64(active)) >> np.uint64(32)
        for i in range(first_time[image[n]], first_time[image[n] + 1]):
            t = times[i] + shift[n]
            start[(t - active if t >= active else t) + 1] += 1
    for t in range(steps):
        start[t + 1] += start[t]
    neuron = np.empty(start[steps], np.int32)
    free = start.copy()
    for n in range(len(image)):
        for i in range(first_time[image[n]], first_time[image[n] + 1]):
            t = times[i] + shift[n]
            t = t - active if t >= active else t
            neuron[free[t]] = n
            free[t] += 1
    return neuron, start


@compiled
def encode_poisson(image, chance, steps, active, first, second):
    """Poisson trains of uint8 intensities (neurons,); ``chance``: of a spike in an active step, by intensity."""
    start = np.zeros(steps + 1, np.int64)
    neuron = np.empty(active * len(image), np.int32)
    n_spikes = 0
    for t in range(active):
        key, other = event_key(first, second, t)
        for n in range(len(image)):
            neuron[n_spikes] = n
            n_spikes += int32(draw_bits(key, other, n) >> uint32(2)) < chance[image[n]]
        start[t + 1] = n_spikes
    start[active + 1 :] = n_spikes
    return neuron[:n_spikes].copy(), start


@njit(inline="always")
def _zeros(size, like):
    """Zeros of the type of ``like`` that begin a cache line: sums in them are a third faster."""
    values = np.zeros(size + 64, like.dtype)
    skip = -values.ctypes.data % 64 // like.itemsize
    return values[skip : skip + size]


@compiled
def _advance(t, neuron, start, pulse, last, drive, weights, columns, rows, geometry, work):
    """Bring ``drive`` from step t - 1 to step t: pulses that began are added, those that ended are taken away.

    Spikes of a step are in order of their places, and all channels of a place reach the same places: their weights are
    added up on the way, four at a time. ``columns`` and ``rows`` say where (:class:`snn.engines.events.Synapses`).
    All sums are exact (:meth:`snn.layer.SpikingConv2d.exact_weight`), so nothing is left behind. Which neurons
    change is found without branches, which no processor could predict.
    """
    width, c_in, kernel, channels = geometry.width, geometry.channels_in, geometry.kernel_size, geometry.channels_out
    row_length = kernel * kernel * channels
    nothing = 2 * c_in * row_length
    changed = work[2]
    # What ended must be read from ``last`` before new spikes change it.
    ended, n_ended = work[0], 0
    if t >= pulse:
        for i in range(start[t - pulse], start[t - pulse + 1]):
            n = neuron[i]
            ended[n_ended] = n
            n_ended += last[n] == t - pulse
    began, n_began = work[1], 0
    for i in range(start[t], start[t + 1]):
        n = neuron[i]
        began[n_began] = n
        n_began += last[n] + pulse <= t
        last[n] = t
    beyond = np.int32(2147483647)
    ended[n_ended] = began[n_began] = beyond
    i, j = 0, 0
    while i < n_ended or j < n_began:
        place = min(ended[i], began[j]) // c_in
        # Packed weights hold a row for each input channel, then the same rows with the other sign, then one of zeros.
        low, high = place * c_in, (place + 1) * c_in
        n = 0
        while ended[i] < high:
            changed[n] = (ended[i] - low + c_in) * row_length
            n += 1
            i += 1
        while began[j] < high:
            changed[n] = (began[j] - low) * row_length
            n += 1
            j += 1
        changed[n] = changed[n + 1] = changed[n + 2] = nothing
        y = place // width
        x = place - y * width
        run = columns[x, 2]
        for ky in range(kernel):
            if rows[y, ky] < 0:
                continue
            target, offset = rows[y, ky] + columns[x, 0], ky * kernel * channels + columns[x, 1]
            # Unsigned numbers cannot count from the end of an array, so these loops are free of checks.
            to, length = uint64(target), uint64(run)
            if n == 1:
                w0 = uint64(changed[0] + offset)
                for q in range(length):
                    drive[to + q] += weights[w0 + q]
                continue
            for k in range(0, n, 4):
                w0, w1 = uint64(changed[k] + offset), uint64(changed[k + 1] + offset)
                w2, w3 = uint64(changed[k + 2] + offset), uint64(changed[k + 3] + offset)
                for q in range(length):
                    drive[to + q] += (weights[w0 + q] + weights[w1 + q]) + (weights[w2 + q] + weights[w3 + q])


@compiled
def simulate_free(neuron, start, pulse, weights, columns, rows, geometry, cell, scale, threshold):
    """Spikes of a layer without inhibition; ``cell``: (v_init, v_leak, v_reset, rate), rate = dt / tau."""
    steps, height = len(start) - 1, geometry.height_out
    channels, places_in_row = geometry.channels_out, geometry.width_out
    row_length = places_in_row * channels
    v_init, v_leak, v_reset, rate = cell
    drive, v = _zeros(height * row_length, weights), np.full(height * row_length, v_init)
    last = np.full(geometry.height * geometry.width * geometry.channels_in, -pulse - 1, np.int32)
    work = np.empty((3, len(last) + 2 * geometry.channels_in + 4), np.int32)
    crossed = np.empty(row_length, np.int32)
    out, out_start, n_out = np.empty(steps * height * row_length, np.int32), np.zeros(steps + 1, np.int64), 0
    for t in range(steps):
        _advance(t, neuron, start, pulse, last, drive, weights, columns, rows, geometry, work)
        for row in range(height):
            base = row * row_length
            row_drive, row_v = drive[base : base + row_length], v[base : base + row_length]
            for m in range(row_length):
                new = row_v[m] + rate * ((row_drive[m] * scale[m] + v_leak) - row_v[m])
                fires = new > threshold[m]
                crossed[m] = fires
                row_v[m] = v_reset if fires else new
            for place in range(places_in_row):
                here = crossed[place * channels : (place + 1) * channels]
                fires = 0
                for m in range(channels):
                    fires |= here[m]
                if fires:
                    for m in range(channels):
                        out[n_out] = base + place * channels + m
                        n_out += here[m]
        out_start[t + 1] = n_out
    return out[:n_out].copy(), out_start


@compiled
def simulate_inhibited(
    neuron, start, pulse, weights, columns, rows, geometry, cell, scale, threshold, blocked_steps, first, second
):
    """Spikes of a layer with cross-depth inhibition; ``first``, ``second``: key of draws between equal channels."""
    steps, height = len(start) - 1, geometry.height_out
    channels, places_in_row = geometry.channels_out, geometry.width_out
    row_length, places = places_in_row * channels, places_in_row * height
    v_init, v_leak, v_reset, rate = cell
    drive, v = _zeros(places * channels, weights), np.full(places * channels, v_init)
    nothing = weights.dtype.type(0)
    # Until this step a neuron ignores its input.
    until = np.zeros(places * channels, np.int32)
    last = np.full(geometry.height * geometry.width * geometry.channels_in, -pulse - 1, np.int32)
    work = np.empty((3, len(last) + 2 * geometry.channels_in + 4), np.int32)
    crossed = np.empty(row_length, np.int32)
    out, out_start, n_out = np.empty(steps * places, np.int32), np.zeros(steps + 1, np.int64), 0
    for t in range(steps):
        _advance(t, neuron, start, pulse, last, drive, weights, columns, rows, geometry, work)
        now = int32(t)
        for row in range(height):
            base = row * row_length
            row_drive, row_v = drive[base : base + row_length], v[base : base + row_length]
            row_until = until[base : base + row_length]
            for m in range(row_length):
                depolarisation = row_drive[m] * scale[m]
                depolarisation = nothing if row_until[m] > now else depolarisation
                new = row_v[m] + rate * ((depolarisation + v_leak) - row_v[m])
                crossed[m] = new > threshold[m]
                row_v[m] = new
            for place in range(places_in_row):
                here = crossed[place * channels : (place + 1) * channels]
                fires = 0
                for m in range(channels):
                    fires |= here[m]
                if not fires:
                    continue
                offset = base + place * channels
                best, margin, ticket = -1, nothing, uint32(0)
                key, other = uint32(0), uint32(0)
                tied = False
                for m in range(channels):
                    over = v[offset + m] - threshold[m]
                    if here[m] and (best < 0 or over >= margin):
                        if best >= 0 and over == margin:
                            if not tied:
                                key, other = event_key(first, second, t * places + offset // channels)
                                ticket, tied = draw_bits(key, other, best), True
                            other_ticket = draw_bits(key, other, m)
                            if other_ticket > ticket:
                                best, ticket = m, other_ticket
                        else:
                            best, margin, tied = m, over, False
                for m in range(channels):
                    v[offset + m] = v_reset
                    if m != best:
                        until[offset + m] = now + 1 + blocked_steps
                out[n_out] = offset + best
                n_out += 1
        out_start[t + 1] = n_out
    return out[:n_out].copy(), out_start


@compiled
def sample_drive(neuron, start, pulse, weights, columns, rows, geometry, places, out):
    """Write the drive of all channels at ``places`` at each step to ``out`` (T, P, channels)."""
    channels = geometry.channels_out
    drive = _zeros(geometry.height_out * geometry.width_out * channels, weights)
    last = np.full(geometry.height * geometry.width * geometry.channels_in, -pulse - 1, np.int32)
    work = np.empty((3, len(last) + 2 * geometry.channels_in + 4), np.int32)
    for t in range(len(start) - 1):
        _advance(t, neuron, start, pulse, last, drive, weights, columns, rows, geometry, work)
        for i in range(len(places)):
            base = places[i] * channels
            for m in range(channels):
                out[t, i, m] = drive[base + m]


@compiled
def count_driven(drive, cell, scale, threshold):
    """Spikes, without inhibition, of all neurons (P, channels) together that receive ``drive`` (T, P, channels)."""
    steps, places, channels = drive.shape
    v_init, v_leak, v_reset, rate = cell
    v, total = np.full(channels, v_init), 0
    for i in range(places):
        v[:] = v_init
        for t in range(steps):
            here = drive[t, i]
            fired = 0
            for m in range(channels):
                new = v[m] + rate * ((here[m] * scale[m] + v_leak) - v[m])
                fires = new > threshold[m]
                fired += int32(fires)
                v[m] = v_reset if fires else new
            total += fired
    return total


@compiled
def count_pairs(
    neuron, start, post, post_start, backward, chances, level, geometry, first, second, events, potentiated, depressed
):
    """Draw what every synapse does at every postsynaptic spike, by the presynaptic spike before (or after) it.

    Args:
        neuron, start, post, post_start: pre- and postsynaptic spikes.
        backward: pair with the next presynaptic spike after the postsynaptic one, not with the last one before.
        chances: int32 (T + 1, levels): chance of LTP, or minus that of LTD, for a difference of so many steps, the
            last row if there is no such spike.
        level: int16 (presynaptic neurons,), index of each one's rate.
        geometry: of the convolution.
        first, second: key of the draws.
        events: int32 (channels, k * k), increased by the postsynaptic spikes of each synapse.
        potentiated, depressed: int32 (channels, k * k, c_in), increased by the changes drawn.
    """
    height, width, c_in, kernel, stride, padding, height_out, width_out, channels = geometry
    steps, neurons_out = len(start) - 1, height_out * width_out * channels
    levels = int32(chances.shape[1])
    table = chances.reshape(-1)
    never = int32(2 * steps + 1)
    # Steps are counted from the end of the presentation if ``backward``.
    seen = np.full(height * width * c_in, -never, np.int32)
    for number in range(steps):
        t = steps - 1 - number if backward else number
        if not backward:
            for i in range(start[t], start[t + 1]):
                seen[neuron[i]] = number
        for i in range(post_start[t], post_start[t + 1]):
            n = post[i]
            place = n // channels
            m = n - place * channels
            top, left = place // width_out * stride - padding, place % width_out * stride - padding
            key, other = event_key(first, second, t * neurons_out + n)
            for ky in range(max(0, -top), min(kernel, height - top)):
                for kx in range(max(0, -left), min(kernel, width - left)):
                    synapse = ky * kernel + kx
                    events[m, synapse] += 1
                    base = ((top + ky) * width + left + kx) * c_in
                    last, rate = seen[base : base + c_in], level[base : base + c_in]
                    up, down = potentiated[m, synapse], depressed[m, synapse]
                    index = synapse * c_in
                    for c in range(c_in):
                        lag = min(int32(number - last[c]), int32(steps))
                        chance = table[int32(lag * levels + int32(rate[c]))]
                        bits = int32(draw_bits(key, other, index + c) >> uint32(2))
                        up[c] += int32(bits < chance)
                        down[c] += int32(bits < -chance)
        if backward:
            for i in range(start[t], start[t + 1]):
                seen[neuron[i]] = number

/* A 4x4 convolution of stride 2 in groups of a few channels, on a processor (grouped_cpu.py): its forward and backward pass.

   Phases: an image's pixels of even and odd rows and columns as four planes of the output's size, with a border of zeros that a row's end shares with the next
   one's beginning, and each taken as one long row. So every tap is a constant distance away, in the phase that it looks at. */

#include "vectors.h"

enum { TAPS = 16, PHASES = 4, STRIP = 64 / LANES }; /* vectors that a sum takes at a time */

typedef struct {
    int groups, inputs, outputs, height, width; /* inputs and outputs of a group; the output's size */
    long pixels, pitch, first, length, plane;   /* of an output; of a row with its border; the first pixel's place; from there to the last one's end; of a plane */
} Shape;

static Shape shape_of(int inputs, int outputs, int groups, int height, int width) {
    Shape s = {.groups = groups, .inputs = inputs / groups, .outputs = outputs / groups, .height = height / 2, .width = width / 2};
    s.pixels = (long)s.height * s.width, s.pitch = s.width + 1, s.first = s.pitch + 1, s.length = s.height * s.pitch - 1;
    s.plane = ((s.height + 2) * s.pitch + 2 * LANES) | 15;
    s.plane += 1;
    return s;
}

/* The phase that a tap looks at, and how far from the output's place: rows and columns -1, 0, 1, 2 are odd, even, odd, even. */
static inline int phase_of(int tap) { return 2 * (tap / 4 % 2 == 0) + (tap % 2 == 0); }
static inline long away(int tap, Shape s) { return ((tap / 4 == 3) - (tap / 4 == 0)) * s.pitch + (tap % 4 == 3) - (tap % 4 == 0); }

/* An image's plane into phases, and back. */
static void split(float *restrict phases, const float *restrict image, Shape s) {
    for (int y = 0; y < 2 * s.height; y++, image += 2 * s.width) {
        float *even = phases + y % 2 * 2 * s.plane + s.first + y / 2 * s.pitch, *odd = even + s.plane;
        for (int x = 0; x < s.width; x++) even[x] = image[2 * x], odd[x] = image[2 * x + 1];
    }
}

static void joined(float *restrict image, const float *restrict phases, Shape s) {
    for (int y = 0; y < 2 * s.height; y++, image += 2 * s.width) {
        const float *even = phases + y % 2 * 2 * s.plane + s.first + y / 2 * s.pitch, *odd = even + s.plane;
        for (int x = 0; x < s.width; x++) image[2 * x] = even[x], image[2 * x + 1] = odd[x];
    }
}

/* out[q] = sum over terms of weights[t] * from[t][q], for q to the length and up to a vector more. */
static void weighted(float *restrict out, const float *const *from, const float *restrict weights, int terms, long length) {
    long q = 0;
    for (; q + (STRIP - 1) * LANES < length; q += STRIP * LANES) {
        vec s[STRIP] = {};
        for (int t = 0; t < terms; t++)
            for (int k = 0; k < STRIP; k++) s[k] += weights[t] * at(from[t] + q + k * LANES);
        for (int k = 0; k < STRIP; k++) put(out + q + k * LANES, s[k]);
    }
    for (; q < length; q += LANES) {
        vec s = {};
        for (int t = 0; t < terms; t++) s += weights[t] * at(from[t] + q);
        put(out + q, s);
    }
}

/* sums[tap] += the gradient times what the tap looks at, as LANES partial sums. */
static void taps_of(float *restrict sums, const float *restrict gradient, const float *restrict phases, Shape s) {
    vec t[TAPS];
    for (int k = 0; k < TAPS; k++) t[k] = at(sums + k * LANES);
    for (long q = s.first; q < s.first + s.length; q += LANES) {
        vec g = at(gradient + q);
#pragma GCC unroll 16
        for (int k = 0; k < TAPS; k++) t[k] += g * at(phases + phase_of(k) * s.plane + q + away(k, s));
    }
    for (int k = 0; k < TAPS; k++) put(sums + k * LANES, t[k]);
}

/* images [count][inputs][height][width], both even; weight [outputs][inputs / groups][4][4]; out [count][outputs][height / 2][width / 2].
   Returns 1 where there is no memory. */
int grouped_forward(const float *images, const float *weight, float *out, int count, int inputs, int outputs, int groups, int height, int width) {
    Shape s = shape_of(inputs, outputs, groups, height, width);
    int terms = s.inputs * TAPS;
    float *phases = room((PHASES * s.inputs + 1) * s.plane, 0), *row = phases + PHASES * s.inputs * s.plane;
    const float **from = malloc(terms * sizeof *from);
    int failed = !phases || !from;
    for (int t = 0; !failed && t < terms; t++) from[t] = phases + (t / TAPS * PHASES + phase_of(t % TAPS)) * s.plane + s.first + away(t % TAPS, s);
    for (int n = 0; !failed && n < count; n++)
        for (int g = 0; g < groups; g++) {
            for (int i = 0; i < s.inputs; i++, images += PHASES * s.pixels) split(phases + i * PHASES * s.plane, images, s);
            for (int o = 0; o < s.outputs; o++, out += s.pixels) {
                weighted(row, from, weight + (g * s.outputs + o) * terms, terms, s.length);
                rows(out, s.width, row, s.pitch, s.height, s.width);
            }
        }
    free(from), free(phases);
    return failed;
}

/* What an input's phase gets back: from[phase][terms] in the gradients with a border, weights[input][phase][terms] of all groups' inputs. */
static void turned_round(const float **from, float *weights, const float *weight, const float *given, int terms, Shape s) {
    for (int phase = 0; phase < PHASES; phase++)
        for (int o = 0, t = phase * terms; o < s.outputs; o++)
            for (int k = 0; k < TAPS; k++) {
                if (phase_of(k) != phase) continue;
                from[t] = given + o * s.plane + s.first - away(k, s);
                for (int g = 0; g < s.groups; g++)
                    for (int i = 0; i < s.inputs; i++) weights[(g * s.inputs + i) * PHASES * terms + t] = weight[((g * s.outputs + o) * s.inputs + i) * TAPS + k];
                t++;
            }
}

/* gradient as the output, of_images as the images; of_weight as the weight. */
int grouped_backward(const float *images, const float *weight, const float *gradient, float *of_images, float *of_weight, int count, int inputs, int outputs, int groups,
                     int height, int width) {
    Shape s = shape_of(inputs, outputs, groups, height, width);
    int terms = s.outputs * TAPS / PHASES;
    long parts = (long)outputs * s.inputs * TAPS, weights_back = (long)inputs * PHASES * terms;
    float *phases = room((PHASES * s.inputs + s.outputs) * s.plane + parts * LANES, PHASES * s.plane + weights_back), *given = phases + PHASES * s.inputs * s.plane,
          *part = given + s.outputs * s.plane, *back = part + parts * LANES, *weights = back + PHASES * s.plane;
    const float **from = malloc(PHASES * terms * sizeof *from);
    int failed = !phases || !from;
    if (!failed) turned_round(from, weights, weight, given, terms, s);
    for (int n = 0; !failed && n < count; n++)
        for (int g = 0; g < groups; g++) {
            for (int i = 0; i < s.inputs; i++, images += PHASES * s.pixels) split(phases + i * PHASES * s.plane, images, s);
            for (int o = 0; o < s.outputs; o++, gradient += s.pixels) rows(given + o * s.plane + s.first, s.pitch, gradient, s.width, s.height, s.width);
            for (int k = 0; k < s.outputs * s.inputs; k++)
                taps_of(part + (g * s.outputs * s.inputs + k) * TAPS * LANES, given + k / s.inputs * s.plane, phases + k % s.inputs * PHASES * s.plane, s);
            for (int i = 0; i < s.inputs; i++, of_images += PHASES * s.pixels) {
                for (int phase = 0; phase < PHASES; phase++)
                    weighted(back + phase * s.plane + s.first, from + phase * terms, weights + ((g * s.inputs + i) * PHASES + phase) * terms, terms, s.length);
                joined(of_images, back, s);
            }
        }
    for (long k = 0; !failed && k < parts; k++) of_weight[k] = sum(at(part + k * LANES));
    free(from), free(phases);
    return failed;
}

static int forward_work(float *const *p, const int *n, int count) { return grouped_forward(p[0], p[2], p[1], count, n[0], n[1], n[2], n[3], n[4]); }
SHARED(all_forward, forward_work)

static int backward_work(float *const *p, const int *n, int count) {
    return grouped_backward(p[0], p[4], p[1], p[2], p[3], count, n[0], n[1], n[2], n[3], n[4]);
}
SHARED(all_backward, backward_work)

/* Batch norm with what stands behind it (SiLU or ReLU, and a 2x2 max-pool or a shortcut) on a processor (normed_cpu.py): its passes forward and back.

   Maps lie with their channels last. A pass takes a few vectors of channels at a time, whose sums and factors stay in registers, down all pixels of some images. */

#include "vectors.h"

#include <math.h>

enum { NONE, SILU, RELU }; /* what stands behind it, act below */
enum { RUN = 64 }; /* pixels that a sum takes before it is added to a longer one: so it rounds less */
enum { AHEAD = 4096 }; /* bytes: what a pass will want of a map by then is asked for, since most of its time it waits for memory */

typedef unsigned char places __attribute__((vector_size(LANES), aligned(1), may_alias));

typedef struct {
    long pixels; /* of all images */
    int count, height, width, channels;
} Shape;

static inline vec either(veci mask, vec a, vec b) { return (vec)(((veci)a & mask) | ((veci)b & ~mask)); }
static inline veci chosen_of(const unsigned char *place) { return __builtin_convertvector(*(const places *)place, veci); }
static inline vec slope(vec z) {
    vec share = sigmoid(z);
    return share * (1.0f + z * (1.0f - share));
}
/* What comes out of an activation; and a gradient's way back through it. What is no number stays so, as by torch. */
static inline __attribute__((always_inline)) vec active(vec z, int act) {
    if (act == SILU) return z * sigmoid(z);
    if (act == RELU) return either(z <= 0.0f, (vec){}, z);
    return z;
}
static inline __attribute__((always_inline)) vec passed(vec gradient, vec z, int act) {
    if (act == SILU) return gradient * slope(z);
    if (act == RELU) return either(z <= 0.0f, (vec){}, gradient);
    return gradient;
}

/* As `get` and `set` do. */
static inline __attribute__((always_inline)) vec take(const void *map, long i, int half) {
    __builtin_prefetch((const char *)map + i * (half ? 2 : 4) + AHEAD, 0);
    return get(map, i, half);
}
static inline __attribute__((always_inline)) void give(void *map, long i, vec x, int half) {
    __builtin_prefetch((const char *)map + i * (half ? 2 : 4) + AHEAD, 1);
    set(map, i, x, half);
}

/* The value of a window's pixel that was the largest; `line` from a pixel to the one below. */
static inline __attribute__((always_inline)) vec picked(const void *images, long corner, veci place, long channels, long line, int half) {
    vec low = either(place == 0, take(images, corner, half), take(images, corner + channels, half));
    vec high = either(place == 2, take(images, corner + line, half), take(images, corner + line + channels, half));
    return either(place < 2, low, high);
}

#define EACH(v) for (int v = 0; v < wide; v++)
#define ALWAYS static inline __attribute__((always_inline)) void
/* Of channels as many vectors at a time as there are, up to four. */
#define BY_WIDTH(half, act, pass, ...)                            \
    for (long c = 0; c < s.channels;)                             \
        if (s.channels - c >= 4 * LANES) {                        \
            pass(__VA_ARGS__, s, c, 4, half, act);                \
            c += 4 * LANES;                                       \
        } else if (s.channels - c >= 2 * LANES) {                 \
            pass(__VA_ARGS__, s, c, 2, half, act);                \
            c += 2 * LANES;                                       \
        } else {                                                  \
            pass(__VA_ARGS__, s, c, 1, half, act);                \
            c += LANES;                                           \
        }
#define BY_ACT(half, ...)                                         \
    if (t.act == SILU) {                                          \
        BY_WIDTH(half, SILU, __VA_ARGS__)                         \
    } else if (t.act == RELU) {                                   \
        BY_WIDTH(half, RELU, __VA_ARGS__)                         \
    } else {                                                      \
        BY_WIDTH(half, NONE, __VA_ARGS__)                         \
    }
#define BY_CHANNELS(...)                                          \
    if (t.half) {                                                 \
        BY_ACT(1, __VA_ARGS__)                                    \
    } else {                                                      \
        BY_ACT(0, __VA_ARGS__)                                    \
    }

ALWAYS sums_of(const void *images, const float *pivot, float *sums, Shape s, long c, int wide, int half, int act) {
    vec first[4] = {}, second[4] = {}, from[4];
    (void)act;
    EACH(v) from[v] = at(pivot + c + v * LANES);
    long p = c;
    for (long i = 0; i < s.pixels; i += RUN) {
        vec some[4] = {}, squares[4] = {};
        for (long k = i; k < i + RUN && k < s.pixels; k++, p += s.channels)
            EACH(v) {
                vec d = take(images, p + v * LANES, half) - from[v];
                some[v] += d, squares[v] += d * d;
            }
        EACH(v) first[v] += some[v], second[v] += squares[v];
    }
    EACH(v) put(sums + c + v * LANES, first[v]), put(sums + s.channels + c + v * LANES, second[v]);
}

ALWAYS forward(const void *images, const float *scale, const float *start, const void *shortcut, void *out, Shape s, long c, int wide, int half, int act) {
    vec by[4], more[4];
    EACH(v) by[v] = at(scale + c + v * LANES), more[v] = at(start + c + v * LANES);
    for (long i = 0; i < s.pixels; i++)
        EACH(v) {
            long p = i * s.channels + c + v * LANES;
            vec y = active(take(images, p, half) * by[v] + more[v], act);
            if (shortcut) y += take(shortcut, p, half);
            give(out, p, y, half);
        }
}

ALWAYS pooled(const void *images, const float *scale, const float *start, unsigned char *place, void *out, Shape s, long c, int wide, int half, int act) {
    vec by[4], more[4];
    EACH(v) by[v] = at(scale + c + v * LANES), more[v] = at(start + c + v * LANES);
    long line = (long)s.width * s.channels, h = s.height / 2, w = s.width / 2, q = c;
    for (long row = 0; row < s.count * h; row++)
        for (long x = 0, corner = (row / h * s.height + row % h * 2) * line + c; x < w; x++, corner += 2 * s.channels, q += s.channels)
            EACH(v) {
                long p = corner + v * LANES;
                vec best = active(take(images, p, half) * by[v] + more[v], act);
                veci chosen = {};
                for (int k = 1; k < 4; k++) {
                    vec y = active(take(images, p + k % 2 * s.channels + k / 2 * line, half) * by[v] + more[v], act);
                    veci better = (y > best) | (y != y); /* as torch's: the first of equal ones, and no number where there is one */
                    best = either(better, y, best), chosen = (better & k) | (chosen & ~better);
                }
                give(out, q + v * LANES, best, half);
                if (place) *(places *)(place + q + v * LANES) = __builtin_convertvector(chosen, places);
            }
}

/* sums of the gradients behind the norm, and of their products with what is above the mean */
ALWAYS back_sums(const void *images, const void *gradient, const float *scale, const float *start, const float *mean, float *sums, Shape s, long c, int wide, int half, int act) {
    vec first[4] = {}, second[4] = {}, by[4], more[4], from[4];
    EACH(v) by[v] = at(scale + c + v * LANES), more[v] = at(start + c + v * LANES), from[v] = at(mean + c + v * LANES);
    for (long i = 0; i < s.pixels; i++)
        EACH(v) {
            long p = i * s.channels + c + v * LANES;
            vec x = take(images, p, half), behind = passed(take(gradient, p, half), x * by[v] + more[v], act);
            first[v] += behind, second[v] += behind * (x - from[v]);
        }
    EACH(v) put(sums + c + v * LANES, first[v]), put(sums + s.channels + c + v * LANES, second[v]);
}

ALWAYS pooled_back_sums(const void *images, const void *gradient, const unsigned char *place, const float *scale, const float *start, const float *mean, float *sums, Shape s,
                        long c, int wide, int half, int act) {
    vec first[4] = {}, second[4] = {}, by[4], more[4], from[4];
    EACH(v) by[v] = at(scale + c + v * LANES), more[v] = at(start + c + v * LANES), from[v] = at(mean + c + v * LANES);
    long line = (long)s.width * s.channels, h = s.height / 2, w = s.width / 2, q = c;
    for (long row = 0; row < s.count * h; row++)
        for (long x = 0, corner = (row / h * s.height + row % h * 2) * line + c; x < w; x++, corner += 2 * s.channels, q += s.channels)
            EACH(v) {
                vec value = picked(images, corner + v * LANES, chosen_of(place + q + v * LANES), s.channels, line, half);
                vec behind = passed(take(gradient, q + v * LANES, half), value * by[v] + more[v], act);
                first[v] += behind, second[v] += behind * (value - from[v]);
            }
    EACH(v) put(sums + c + v * LANES, first[v]), put(sums + s.channels + c + v * LANES, second[v]);
}

/* out = scale * the gradient behind the norm - (images * along + off) */
ALWAYS back(const void *images, const void *gradient, const float *scale, const float *start, const float *along, const float *off, void *out, Shape s, long c, int wide,
            int half, int act) {
    vec by[4], more[4], less[4], least[4];
    EACH(v) by[v] = at(scale + c + v * LANES), more[v] = at(start + c + v * LANES), less[v] = at(along + c + v * LANES), least[v] = at(off + c + v * LANES);
    for (long i = 0; i < s.pixels; i++)
        EACH(v) {
            long p = i * s.channels + c + v * LANES;
            vec x = take(images, p, half), behind = passed(take(gradient, p, half), x * by[v] + more[v], act);
            give(out, p, by[v] * behind - (x * less[v] + least[v]), half);
        }
}

ALWAYS pooled_back(const void *images, const void *gradient, const unsigned char *place, const float *scale, const float *start, const float *along, const float *off, void *out,
                   Shape s, long c, int wide, int half, int act) {
    vec by[4], more[4], less[4], least[4];
    EACH(v) by[v] = at(scale + c + v * LANES), more[v] = at(start + c + v * LANES), less[v] = at(along + c + v * LANES), least[v] = at(off + c + v * LANES);
    long line = (long)s.width * s.channels, h = s.height / 2, w = s.width / 2;
    for (long row = 0; row < (long)s.count * s.height; row += row % s.height + 1 < s.height ? 2 : 1) {
        long y = row % s.height / 2, corner = row * line + c, q = (row / s.height * h + y) * w * s.channels + c;
        for (long x = 0; x < s.width; x += 2, corner += 2 * s.channels, q += s.channels) {
            int below = row % s.height + 1 < s.height, beside = x + 1 < s.width; /* an odd side's last line is in no window */
            EACH(v) {
                veci chosen = (veci){} - 1;
                vec behind = {};
                if (below && beside) {
                    chosen = chosen_of(place + q + v * LANES);
                    vec value = picked(images, corner + v * LANES, chosen, s.channels, line, half);
                    behind = by[v] * passed(take(gradient, q + v * LANES, half), value * by[v] + more[v], act);
                }
                for (int k = 0; k < 4; k++) {
                    if ((k % 2 && !beside) || (k / 2 && !below)) continue;
                    long p = corner + v * LANES + k % 2 * s.channels + k / 2 * line;
                    give(out, p, either(chosen == k, behind, (vec){}) - (take(images, p, half) * less[v] + least[v]), half);
                }
            }
        }
    }
}

/* What a pass is given. Sums are [parts][2][channels]. */
typedef struct {
    const void *images, *gradient, *shortcut;
    const float *pivot, *scale, *start, *along, *off;
    unsigned char *place;
    float *sums;
    void *out;
    int half, act, pools, channels, height, width;
} Task;

/* The same for some images of it. */
static Task of_part(const Task *t, int number, int first) {
    Task own = *t;
    long inner = (long)first * t->height * t->width * t->channels, outer = t->pools ? (long)first * (t->height / 2) * (t->width / 2) * t->channels : inner;
    long size = t->half ? sizeof(short) : sizeof(float);
    own.images = (const char *)t->images + inner * size, own.sums += 2 * (long)number * t->channels;
    if (t->shortcut) own.shortcut = (const char *)t->shortcut + inner * size;
    if (t->gradient) own.gradient = (const char *)t->gradient + outer * size;
    if (t->place) own.place += outer;
    if (t->out) own.out = (char *)t->out + (t->gradient ? inner : outer) * size;
    return own;
}

static Shape shape_of(const Task *t, int count) { return (Shape){(long)count * t->height * t->width, count, t->height, t->width, t->channels}; }

static int sums_part(const void *task, int number, int first, int count) {
    Task t = of_part(task, number, first);
    Shape s = shape_of(&t, count);
    BY_CHANNELS(sums_of, t.images, t.pivot, t.sums)
    return 0;
}

static int forward_part(const void *task, int number, int first, int count) {
    Task t = of_part(task, number, first);
    Shape s = shape_of(&t, count);
    if (t.pools) {
        BY_CHANNELS(pooled, t.images, t.scale, t.start, t.place, t.out)
    } else {
        BY_CHANNELS(forward, t.images, t.scale, t.start, t.shortcut, t.out)
    }
    return 0;
}

static int back_sums_part(const void *task, int number, int first, int count) {
    Task t = of_part(task, number, first);
    Shape s = shape_of(&t, count);
    if (t.pools) {
        BY_CHANNELS(pooled_back_sums, t.images, t.gradient, t.place, t.scale, t.start, t.pivot, t.sums)
    } else {
        BY_CHANNELS(back_sums, t.images, t.gradient, t.scale, t.start, t.pivot, t.sums)
    }
    return 0;
}

static int back_part(const void *task, int number, int first, int count) {
    Task t = of_part(task, number, first);
    Shape s = shape_of(&t, count);
    if (t.pools) {
        BY_CHANNELS(pooled_back, t.images, t.gradient, t.place, t.scale, t.start, t.along, t.off, t.out)
    } else {
        BY_CHANNELS(back, t.images, t.gradient, t.scale, t.start, t.along, t.off, t.out)
    }
    return 0;
}

/* scale and start of `count` channels: images * scale + start is what the activation is given. */
static void factors(const float *gain, const float *bias, const float *mean, const float *variance, float eps, float *scale, float *start, int count) {
    for (int c = 0; c < count; c++) scale[c] = gain[c] / sqrtf(variance[c] + eps), start[c] = bias[c] - mean[c] * scale[c];
}

/* The sums of all parts, in those of the first. */
static void add_parts(float *sums, int channels, int count) {
    for (long k = 1; k < (count + PART - 1) / PART; k++)
        for (long c = 0; c < 2 * channels; c++) sums[c] += sums[k * 2 * channels + c];
}

/* images                [count][height][width][channels], channels a multiple of sixteen; as all maps of float, or where they are half, bf16
   shortcut              as the images, added behind the activation; or NULL
   place                 [count][height / 2][width / 2][channels]: which of a window's four pixels was the largest, row by row; or NULL
   out                   as the images, or where it `pools` as `place`
   stats                 [2][channels]: mean and variance (over all pixels, not one less), where it `learns` those of the images, else what is given */
int norm_forward(const void *images, const float *gain, const float *bias, const void *shortcut, unsigned char *place, void *out, float *stats, float eps, int learns, int pools,
                 int half, int act, int count, int channels, int height, int width, int threads) {
    long parts = (count + PART - 1) / PART;
    float *work = room(0, (3 + 2 * parts) * channels);
    if (!work) return 1;
    float *pivot = work, *scale = pivot + channels, *start = scale + channels, *mean = stats, *variance = stats + channels, pixels = (float)((long)count * height * width);
    Task t = {.images = images, .pivot = pivot, .scale = scale, .start = start, .shortcut = shortcut, .place = place, .sums = start + channels};
    t.half = half, t.act = act, t.pools = pools, t.channels = channels, t.height = height, t.width = width;
    if (learns) {
        for (int c = 0; c < channels; c += LANES) put(pivot + c, get(images, c, half)); /* a pixel: squares of what is far from zero would lose the variance */
        by_parts(sums_part, &t, count, threads);
        add_parts(t.sums, channels, count);
        for (int c = 0; c < channels; c++) {
            float away = t.sums[c] / pixels, spread = t.sums[channels + c] / pixels - away * away;
            mean[c] = pivot[c] + away, variance[c] = spread < 0 ? 0 : spread;
        }
    }
    factors(gain, bias, mean, variance, eps, scale, start, channels);
    t.out = out;
    by_parts(forward_part, &t, count, threads);
    free(work);
    return 0;
}

/* gradient              of `out`; place NULL where nothing was pooled
   out                   the gradient of the images
   of_gain, of_bias      [channels] */
int norm_backward(const void *images, const void *gradient, unsigned char *place, const float *gain, const float *bias, const float *stats, void *out, float *of_gain,
                  float *of_bias, float eps, int half, int act, int count, int channels, int height, int width, int threads) {
    long parts = (count + PART - 1) / PART;
    float *work = room(0, (4 + 2 * parts) * channels);
    if (!work) return 1;
    float *scale = work, *start = scale + channels, *along = start + channels, *off = along + channels, pixels = (float)((long)count * height * width);
    Task t = {.images = images, .gradient = gradient, .pivot = stats, .scale = scale, .start = start, .along = along, .off = off, .place = place, .sums = off + channels};
    t.half = half, t.act = act, t.pools = place != NULL, t.channels = channels, t.height = height, t.width = width;
    factors(gain, bias, stats, stats + channels, eps, scale, start, channels);
    by_parts(back_sums_part, &t, count, threads);
    add_parts(t.sums, channels, count);
    for (int c = 0; c < channels; c++) { /* scale * (behind - mean of behind - normalised * mean of behind * normalised), with what is the same for all pixels put together */
        float root = 1 / sqrtf(stats[channels + c] + eps);
        of_bias[c] = t.sums[c], of_gain[c] = t.sums[channels + c] * root;
        along[c] = scale[c] * root * of_gain[c] / pixels, off[c] = scale[c] * of_bias[c] / pixels - stats[c] * along[c];
    }
    t.out = out;
    by_parts(back_part, &t, count, threads);
    free(work);
    return 0;
}

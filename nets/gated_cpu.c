/* A tiny net's block on a processor (gated_cpu.py): forward and backward pass of a few images at a time, whose maps stay in the cache as planes
   (gated_maps.h).

   In half, for processors that multiply pairs of bf16 (`both`), products are of such pairs: of two neighbouring channels of a pixel where channels are summed over, and for
   gradients of filters of two neighbouring pixels. Maps, norms, gates and all sums stay float. */

#include "vectors.h"
#include "gated_maps.h"

#include <math.h>

enum { OUT = LANES == 16 ? 8 : 4, BESIDE = LANES == 8 ? 2 : 4 }; /* outputs of a product, and columns of an outer one, at a time: as many sums as registers hold */

#ifdef __AVX512F__
static inline vec inverse_root(vec x) {
    vec r = (vec)_mm512_rsqrt14_ps((__m512)x);
    return r * (1.5f - 0.5f * x * r * r);
}
#elif defined(__AVX2__)
static inline vec inverse_root(vec x) { return 1.0f / (vec)_mm256_sqrt_ps((__m256)x); }
#else
static inline vec inverse_root(vec x) {
    for (int i = 0; i < LANES; i++) x[i] = 1.0f / sqrtf(x[i]);
    return x;
}
#endif

#define ALWAYS static inline __attribute__((always_inline)) void
#define ALWAYS_INT static inline __attribute__((always_inline)) int

/* out[o][0..STRIP) = start[o], or base[o][0..STRIP), + sum over i of weight[i][o] * in[i][0..STRIP); `outs` a multiple of OUT. In half i counts pairs. */
ALWAYS product(float *restrict out, long out_span, const float *restrict weight, const float *restrict start, Planes base, const float *restrict in,
                    long in_span, int ins, int outs, int half) {
    for (int o = 0; o < outs; o += OUT) {
        vec sum[OUT][ACROSS];
        for (int k = 0; k < OUT; k++)
            for (int v = 0; v < ACROSS; v++) sum[k][v] = base.at ? at(base.at + (o + k) * base.span + v * LANES) : start ? all(start[o + k]) : (vec){};
        const float *w = weight + o, *x = in;
        for (int i = 0; i < ins; i++, w += outs, x += in_span) {
            vec a[ACROSS];
            for (int v = 0; v < ACROSS; v++) a[v] = held(at(x + v * LANES));
#pragma GCC unroll 8
            for (int k = 0; k < OUT; k++)
#pragma GCC unroll 4
                for (int v = 0; v < ACROSS; v++) sum[k][v] = more(sum[k][v], half ? same(w + k) : all(w[k]), a[v], half);
        }
        for (int k = 0; k < OUT; k++)
            for (int v = 0; v < ACROSS; v++) put(out + (o + k) * out_span + v * LANES, sum[k][v]);
    }
}

/* A strip's channels as pairs, two channels a row. */
static inline void paired_channels(float *restrict out, const float *restrict in, long span, int channels) {
    for (int c = 0; c < channels; c += 2, in += 2 * span)
        for (int v = 0; v < STRIP; v += LANES, out += LANES) *(vecu *)out = paired(at(in + v), at(in + span + v));
}

/* A strip's channels in bf16: neighbouring pixels are pairs. */
static inline void paired_pixels(float *restrict out, long out_span, const float *restrict in, long span, int channels) {
    for (int c = 0; c < channels; c++, in += span, out += out_span)
        for (int v = 0; v < STRIP; v += LANES) set(out, v, at(in + v), 1);
}

/* sums[i][j] += left[i] . right[j] over the span, each as LANES partial sums; rows and columns multiples of four. In half pixels count pairs. */
ALWAYS outer(float *restrict sums, const float *restrict left, long left_span, int rows, const float *restrict right, long right_span, int columns, long pixels, int half) {
    for (int i = 0; i < rows; i += FOUR)
        for (int j = 0; j < columns; j += BESIDE) {
            vec s[FOUR][BESIDE];
            for (int a = 0; a < FOUR; a++)
                for (int b = 0; b < BESIDE; b++) s[a][b] = at(sums + ((i + a) * columns + j + b) * LANES);
            for (long p = 0; p < pixels; p += LANES) {
                vec l[FOUR], r[BESIDE];
                for (int a = 0; a < FOUR; a++) l[a] = held(at(left + (i + a) * left_span + p));
                for (int b = 0; b < BESIDE; b++) r[b] = held(at(right + (j + b) * right_span + p));
#pragma GCC unroll 4
                for (int a = 0; a < FOUR; a++)
#pragma GCC unroll 4
                    for (int b = 0; b < BESIDE; b++) s[a][b] = more(s[a][b], l[a], r[b], half);
            }
            for (int a = 0; a < FOUR; a++)
                for (int b = 0; b < BESIDE; b++) put(sums + ((i + a) * columns + j + b) * LANES, s[a][b]);
        }
}

/* Each pixel's channels of one strip to mean nought and deviation one; gives back one over the deviation. */
static inline void normed(float *restrict out, long out_span, float *restrict root, const float *restrict in, long in_span, int channels, float eps) {
    vec mean[2 * ACROSS] = {}, square[2 * ACROSS] = {}, r[ACROSS]; /* many sums at a time, so that none waits for itself; channels are even */
    for (int c = 0; c < channels; c += 2)
        for (int k = 0; k < 2 * ACROSS; k++) mean[k] += at(in + (c + k / ACROSS) * in_span + k % ACROSS * LANES);
    for (int k = 0; k < ACROSS; k++) mean[k] = (mean[k] + mean[k + ACROSS]) * (1.0f / channels);
    for (int c = 0; c < channels; c += 2)
        for (int k = 0; k < 2 * ACROSS; k++) {
            vec d = at(in + (c + k / ACROSS) * in_span + k % ACROSS * LANES) - mean[k % ACROSS];
            square[k] += d * d;
        }
    for (int k = 0; k < ACROSS; k++) r[k] = inverse_root((square[k] + square[k + ACROSS]) * (1.0f / channels) + eps);
    for (int c = 0; c < channels; c++)
        for (int k = 0; k < ACROSS; k++) put(out + c * out_span + k * LANES, (at(in + c * in_span + k * LANES) - mean[k]) * r[k]);
    for (int k = 0; root && k < ACROSS; k++) put(root + k * LANES, r[k]);
}

/* images       [count][C][H][W], or where it says "last" [count][H][W][C]; out [count][C][H][W]
   taps         [C][9]
   widen        [C][2C]: from the normed channel, with the norm's gain in it, to gates and values; bias [2C] what the norm's shift adds to them
   narrow       [C][C]: from the gated channel to the block's, with its scale in it
   half         whether products are of bf16: then two neighbouring rows of widen, and of narrow, are one of pairs
   Returns 1 where there is no memory. */
ALWAYS_INT forward(const float *images, int images_last, float *out, const float *taps, const float *widen, const float *bias, const float *narrow, float eps, int count,
                   int channels, int height, int width, int half) {
    Shape s = shape_of(channels, height, width, count);
    long C = channels, plane = C * s.span, terms = half ? C / 2 : C;
    float *work = room(3 * s.plane, 3 * plane + 5 * C * STRIP);
    if (!work) return 1;
    float *own = work + 3 * s.plane, *look = own + plane, *made = look + plane, *norm = made + plane, *wide = norm + C * STRIP, *gated = wide + 2 * C * STRIP,
          *pairs = gated + C * STRIP;
    int as_they_lie = are_planes(0, s);
    for (int first = 0; first < count; first += s.images, out += s.images * C * s.pixels) {
        int here = count - first < s.images ? count - first : s.images;
        Planes in = planes_of(own, images + first * C * s.pixels, images_last, here, s);
        float *to = as_they_lie ? out : made;
        long to_span = as_they_lie ? s.pixels : s.span;
        looked(look, work, in, taps, here, s);
        for (long p = 0; p < s.full; p += STRIP) {
            normed(norm, STRIP, NULL, look + p, s.span, channels, eps);
            if (half) paired_channels(pairs, norm, STRIP, channels);
            product(wide, STRIP, widen, bias, (Planes){}, half ? pairs : norm, STRIP, terms, 2 * channels, half);
            for (long c = 0; c < C * STRIP; c += LANES) {
                vec gate = at(wide + c);
                put(gated + c, gate * sigmoid(gate) * at(wide + C * STRIP + c));
            }
            if (half) paired_channels(pairs, gated, STRIP, channels);
            product(to + p, to_span, narrow, NULL, (Planes){in.at + p, in.span}, half ? pairs : gated, STRIP, terms, channels, half);
        }
        if (!as_they_lie) given_back(out, made, 0, here, s);
    }
    free(work);
    return 0;
}

int block_forward(const float *images, int images_last, float *out, const float *taps, const float *widen, const float *bias, const float *narrow, float eps, int count,
                  int channels, int height, int width, int half) {
    if (half) return forward(images, images_last, out, taps, widen, bias, narrow, eps, count, channels, height, width, 1);
    return forward(images, images_last, out, taps, widen, bias, narrow, eps, count, channels, height, width, 0);
}

/* gradient, out         of the block's output; of its input, which lies as the images do
   widen_back            [2C][C], narrow_back [C][C]: the same filters, from the output's channels to the input's
   tap_sums              [C][9], wide_sums [2C][C], bias_sums [2C], narrow_sums [C][C]: gradients of taps, widen turned round, bias and narrow turned round
   half                  as above; rows of widen_back and narrow_back are pairs, too */
ALWAYS_INT backward(const float *images, int images_last, const float *gradient, int gradient_last, float *out, const float *taps, const float *widen, const float *bias,
                    const float *widen_back, const float *narrow_back, float *tap_sums, float *wide_sums, float *bias_sums, float *narrow_sums, float eps, int count,
                    int channels, int height, int width, int half) {
    Shape s = shape_of(channels, height, width, count);
    long C = channels, plane = C * s.span, partial = LANES * (C * 9 + 2 * C * C + 2 * C + C * C), terms = half ? C / 2 : C;
    long kept = half ? s.pairs : s.span, span = half ? STRIP : s.span; /* of what gradients of filters are made of, and of a strip of it before it is pairs */
    float *work = room(3 * s.plane + partial, 4 * plane + 5 * C * kept + s.full + 8 * C * STRIP);
    if (!work) return 1;
    float *taps_part = work + 3 * s.plane, *wide_part = taps_part + LANES * C * 9, *bias_part = wide_part + LANES * 2 * C * C, *narrow_part = bias_part + LANES * 2 * C,
          *look = taps_part + partial, *back = look + plane, *given = back + plane, *own = given + plane, *norm = own + plane, *gated = norm + C * kept, *wide = gated + C * kept,
          *above = wide + 2 * C * kept, *root = above + C * kept, *made = root + s.full, *through = made + 2 * C * STRIP, *pairs = through + C * STRIP,
          *strips = pairs + C * STRIP;
    int as_they_lie = are_planes(images_last, s);
    for (int first = 0; first < count; first += s.images, out += s.images * C * s.pixels) {
        int here = count - first < s.images ? count - first : s.images;
        Planes in = planes_of(own, images + first * C * s.pixels, images_last, here, s);
        Planes up_to_here = planes_of(given, gradient + first * C * s.pixels, gradient_last, here, s);
        looked(look, work, in, taps, here, s);
        for (long p = 0; p < s.full; p += STRIP) {
            const float *up = up_to_here.at + p;
            float *n = half ? strips : norm + p, *g = half ? n + C * STRIP : gated + p, *w = half ? g + C * STRIP : wide + p;
            normed(n, span, root + p, look + p, s.span, channels, eps);
            if (half) paired_channels(pairs, n, span, channels), paired_pixels(norm + p / 2, kept, n, span, channels);
            product(made, STRIP, widen, bias, (Planes){}, half ? pairs : n, half ? STRIP : span, terms, 2 * channels, half);
            if (half) paired_channels(pairs, up, up_to_here.span, channels), paired_pixels(above + p / 2, kept, up, up_to_here.span, channels);
            product(through, STRIP, narrow_back, NULL, (Planes){}, half ? pairs : up, half ? STRIP : up_to_here.span, terms, channels, half); /* the gradient of what is gated */
            for (long c = 0; c < C; c++)
                for (int v = 0; v < STRIP; v += LANES) {
                    long q = c * STRIP + v, to = c * span + v;
                    vec gate = at(made + q), value = at(made + C * STRIP + q), given = at(through + q), share = sigmoid(gate), silu = gate * share;
                    vec of_gate = given * value * (share + silu * (1.0f - share)), of_value = given * silu;
                    put(g + to, silu * value), put(w + to, of_gate), put(w + C * span + to, of_value);
                    put(bias_part + c * LANES, at(bias_part + c * LANES) + of_gate);
                    put(bias_part + (C + c) * LANES, at(bias_part + (C + c) * LANES) + of_value);
                }
            if (half) paired_pixels(gated + p / 2, kept, g, span, channels), paired_pixels(wide + p / 2, kept, w, span, 2 * channels), paired_channels(pairs, w, span, 2 * channels);
            product(through, STRIP, widen_back, NULL, (Planes){}, half ? pairs : w, half ? STRIP : span, 2 * terms, channels, half); /* the gradient of what is normed */
            for (int v = 0; v < STRIP; v += LANES) {
                vec mean = {}, along = {}, r = at(root + p + v);
                for (long c = 0; c < C; c++) mean += at(through + c * STRIP + v), along += at(through + c * STRIP + v) * at(n + c * span + v);
                mean *= 1.0f / C, along *= 1.0f / C;
                for (long c = 0; c < C; c++) put(back + c * s.span + p + v, (at(through + c * STRIP + v) - mean - at(n + c * span + v) * along) * r);
            }
        }
        long length = half ? s.full / 2 : s.full;
        outer(narrow_part, half ? above : up_to_here.at, half ? kept : up_to_here.span, channels, gated, kept, channels, length, half);
        outer(wide_part, wide, kept, 2 * channels, norm, kept, channels, length, half);
        float *to = as_they_lie ? out : look;
        long to_span = as_they_lie ? s.pixels : s.span;
        for (long c = 0; c < C; c++)
            for (int n = 0; n < here; n++) {
                long at_image = n * s.pixels;
                const float *of_look = back + c * s.span + at_image;
                taps_of(taps_part + 9 * c * LANES, of_look, in.at + c * in.span + at_image, work, s);
                depthwise(to + c * to_span + at_image, up_to_here.at + c * up_to_here.span + at_image, of_look, taps + 9 * c, 1, work, s);
            }
        if (!as_they_lie) given_back(out, look, images_last, here, s);
    }
    for (long k = 0; k < 9 * C; k++) tap_sums[k] = sum(at(taps_part + k * LANES));
    for (long k = 0; k < 2 * C * C; k++) wide_sums[k] = sum(at(wide_part + k * LANES));
    for (long k = 0; k < 2 * C; k++) bias_sums[k] = sum(at(bias_part + k * LANES));
    for (long k = 0; k < C * C; k++) narrow_sums[k] = sum(at(narrow_part + k * LANES));
    free(work);
    return 0;
}

int block_backward(const float *images, int images_last, const float *gradient, int gradient_last, float *out, const float *taps, const float *widen, const float *bias,
                   const float *widen_back, const float *narrow_back, float *tap_sums, float *wide_sums, float *bias_sums, float *narrow_sums, float eps, int count,
                   int channels, int height, int width, int half) {
    if (half)
        return backward(images, images_last, gradient, gradient_last, out, taps, widen, bias, widen_back, narrow_back, tap_sums, wide_sums, bias_sums, narrow_sums, eps,
                        count, channels, height, width, 1);
    return backward(images, images_last, gradient, gradient_last, out, taps, widen, bias, widen_back, narrow_back, tap_sums, wide_sums, bias_sums, narrow_sums, eps, count,
                    channels, height, width, 0);
}

static int forward_work(float *const *p, const int *n, int count) {
    return block_forward(p[0], n[0], p[1], p[2], p[3], p[4], p[5], *p[6], count, n[1], n[2], n[3], n[4]);
}
SHARED(gated_forward, forward_work)

static int backward_work(float *const *p, const int *n, int count) {
    return block_backward(p[0], n[0], p[1], n[1], p[2], p[7], p[8], p[9], p[10], p[11], p[3], p[4], p[5], p[6], *p[12], count, n[2], n[3], n[4], n[5]);
}
SHARED(gated_backward, backward_work)

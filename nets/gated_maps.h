/* Maps of a tiny net's block on a processor (gated_cpu.c): how they lie, and depthwise filters of them.

   Planes: a map of C channels as C rows of `span` floats, the pixels of a group of images one behind the other, zeros behind the last. A vector is of
   neighbouring pixels, so that the number of channels is no matter, and a sum over channels is one of vectors. A depthwise filter shifts
   vectors where they end with rows; elsewhere an image's plane gets a border of zeros and is taken as one long row, in which every tap is a constant
   distance away. */

enum { ACROSS = LANES == 4 ? 4 : 2, STRIP = ACROSS * LANES }; /* vectors that a product takes at a time, and their pixels */
enum { WANTED = 256, FOUR = 4 }; /* pixels that a group of images is to have; rows that a depthwise filter takes at a time */

#ifdef __AVX512F__
#define MOVED(lanes, high, low, by) (vec)_mm512_maskz_alignr_epi32(lanes, (__m512i)(high), (__m512i)(low), by)
static inline vec from_left(vec before, vec x) { return MOVED(0xffff, x, before, 15); } /* what stands to the left of each lane; to the right */
static inline vec from_right(vec x, vec behind) { return MOVED(0xffff, behind, x, 1); }
/* of a vector of two rows: the same; zeros and the first row; the second and zeros */
static inline vec left_of_two(vec x) { return MOVED(0xfefe, x, x, 15); }
static inline vec right_of_two(vec x) { return MOVED(0x7f7f, x, x, 1); }
static inline vec none_and_first(vec x) { return MOVED(0xff00, x, x, 8); }
static inline vec second_and_none(vec x) { return MOVED(0x00ff, x, x, 8); }
#elif defined(__AVX2__)
static inline vec from_left(vec before, vec x) { return MIXED(before, x, 7, 8, 9, 10, 11, 12, 13, 14); }
static inline vec from_right(vec x, vec behind) { return MIXED(x, behind, 1, 2, 3, 4, 5, 6, 7, 8); }
static inline vec left_of_two(vec x) { return MIXED(x, (vec){}, 8, 0, 1, 2, 8, 4, 5, 6); }
static inline vec right_of_two(vec x) { return MIXED(x, (vec){}, 1, 2, 3, 8, 5, 6, 7, 8); }
static inline vec none_and_first(vec x) { return MIXED(x, (vec){}, 8, 8, 8, 8, 0, 1, 2, 3); }
static inline vec second_and_none(vec x) { return MIXED(x, (vec){}, 4, 5, 6, 7, 8, 8, 8, 8); }
#else
static inline vec from_left(vec before, vec x) { return MIXED(before, x, 3, 4, 5, 6); }
static inline vec from_right(vec x, vec behind) { return MIXED(x, behind, 1, 2, 3, 4); }
static inline vec left_of_two(vec x) { return MIXED(x, (vec){}, 4, 0, 4, 2); }
static inline vec right_of_two(vec x) { return MIXED(x, (vec){}, 1, 4, 3, 4); }
static inline vec none_and_first(vec x) { return MIXED(x, (vec){}, 4, 4, 0, 1); }
static inline vec second_and_none(vec x) { return MIXED(x, (vec){}, 2, 3, 4, 4); }
#endif

/* Channels, the pixels of each one behind the other, in a buffer of ours or as the images lie; `span` from one to the next. */
typedef struct {
    const float *at;
    long span;
} Planes;

typedef struct {
    int channels, height, width, images;   /* of a group */
    long pixels, full, span, pairs, pitch, plane; /* of an image; of a group's plane; to its next one; so of pairs; of a row with its border; of an image with it, and room behind */
} Shape;

static Shape shape_of(int channels, int height, int width, int images) {
    Shape s = {.channels = channels, .height = height, .width = width, .pixels = (long)height * width, .pitch = width + 2};
    s.images = s.pixels < WANTED ? (int)(WANTED / s.pixels) : 1;
    s.images = s.images < images ? s.images : images;
    s.full = (s.images * s.pixels + STRIP - 1) / STRIP * STRIP;
    s.span = s.full | 16; /* an odd number of cache lines: a power of two of them, and a pixel's channels all fall into one set of the cache */
    s.pairs = s.full / 2 | 16;
    s.plane = ((height + 2) * s.pitch + 3 * STRIP) / STRIP * STRIP;
    return s;
}

/* EDGE vectors of EDGE turned round: to[j][i] = from[i][j]. */
static inline void turn(float *restrict to, long to_span, const float *restrict from, long from_span) {
    part r[EDGE], t[EDGE];
    for (int i = 0; i < EDGE; i++) r[i] = *(const part *)(from + i * from_span);
#ifdef __aarch64__
    for (int i = 0; i < 2; i++) t[i] = MIXED(r[i], r[i + 2], 0, 4, 1, 5), t[i + 2] = MIXED(r[i], r[i + 2], 2, 6, 3, 7);
    for (int j = 0; j < 4; j += 2) {
        *(part *)(to + j * to_span) = MIXED(t[j], t[j + 1], 0, 4, 1, 5);
        *(part *)(to + (j + 1) * to_span) = MIXED(t[j], t[j + 1], 2, 6, 3, 7);
    }
#else
    for (int i = 0; i < 8; i += 2) {
        t[i] = MIXED(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        t[i + 1] = MIXED(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + j] = MIXED(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + j + 2] = MIXED(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int j = 0; j < 4; j++) {
        *(part *)(to + j * to_span) = MIXED(r[j], r[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(part *)(to + (j + 4) * to_span) = MIXED(r[j], r[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
#endif
}

/* Whether an image's channels are planes as they lie. */
static inline int are_planes(int last, Shape s) { return !last && s.images == 1 && s.pixels % STRIP == 0; }

/* Images, [count][C][pixels] or with their channels last [count][pixels][C], into planes, zeros behind the last. */
static void taken(float *restrict planes, const float *restrict images, int last, int count, Shape s) {
    long C = s.channels;
    for (int n = 0; n < count; n++, images += C * s.pixels) {
        float *to = planes + n * s.pixels;
        if (!last) {
            for (long c = 0; c < C; c++) memcpy(to + c * s.span, images + c * s.pixels, s.pixels * sizeof(float));
            continue;
        }
        long p = 0;
        for (; p + EDGE <= s.pixels; p += EDGE)
            for (long c = 0; c < C; c += EDGE) turn(to + c * s.span + p, s.span, images + p * C + c, C);
        for (; p < s.pixels; p++)
            for (long c = 0; c < C; c++) to[c * s.span + p] = images[p * C + c];
    }
    for (long c = 0; c < C; c++) memset(planes + c * s.span + count * s.pixels, 0, (s.full - count * s.pixels) * sizeof(float));
}

/* And back. */
static void given_back(float *restrict images, const float *restrict planes, int last, int count, Shape s) {
    long C = s.channels;
    for (int n = 0; n < count; n++, images += C * s.pixels) {
        const float *from = planes + n * s.pixels;
        if (!last) {
            for (long c = 0; c < C; c++) memcpy(images + c * s.pixels, from + c * s.span, s.pixels * sizeof(float));
            continue;
        }
        long p = 0;
        for (; p + EDGE <= s.pixels; p += EDGE)
            for (long c = 0; c < C; c += EDGE) turn(images + p * C + c, C, from + c * s.span + p, s.span);
        for (; p < s.pixels; p++)
            for (long c = 0; c < C; c++) images[p * C + c] = from[c * s.span + p];
    }
}

/* The planes of some images: their own, where they are some, or a copy. */
static Planes planes_of(float *copy, const float *images, int last, int count, Shape s) {
    if (are_planes(last, s)) return (Planes){images, s.pixels};
    taken(copy, images, last, count, s);
    return (Planes){copy, s.span};
}

static inline void bordered(float *restrict plane, const float *restrict image, Shape s) { rows(plane + s.pitch + 1, s.pitch, image, s.width, s.height, s.width); }

/* How many rows a vector holds: one or a part of one, or two; nought where vectors do not end with rows, and four of them with the image. */
static inline int rows_a_vector(Shape s) {
    if (s.width % LANES == 0 && s.height % FOUR == 0) return 1;
    return 2 * s.width == LANES && s.height % (2 * FOUR) == 0 ? 2 : 0;
}

/* The pixels beside those of a vector, and themselves; zeros outside the image. */
typedef struct {
    vec left, middle, right;
} Row;

static inline __attribute__((always_inline)) Row row_of(const float *plane, int y, int x, int step, Shape s) {
    const float *p = plane + (long)y * s.width + x;
    if (step == 2) {
        vec middle = y < 0 ? none_and_first(at(plane)) : y + 1 == s.height ? second_and_none(at(p - s.width)) : at(p);
        return (Row){left_of_two(middle), middle, right_of_two(middle)};
    }
    if (y < 0 || y == s.height) return (Row){};
    vec middle = at(p), before = x ? at(p - LANES) : (vec){}, behind = x + LANES < s.width ? at(p + LANES) : (vec){};
    return (Row){from_left(before, middle), middle, from_right(middle, behind)};
}

/* A row serves all of four vectors, one below the other, that it is next to. */
static inline __attribute__((always_inline)) void depthwise_rows(float *restrict out, const float *restrict base, const float *restrict in, const vec *t, int step, Shape s) {
    for (int y = 0; y < s.height; y += FOUR * step)
        for (int x = 0; x < s.width; x += LANES) {
            vec sum[FOUR];
            for (int k = 0; k < FOUR; k++) sum[k] = base ? at(base + (long)(y + k * step) * s.width + x) : (vec){};
#pragma GCC unroll 9
            for (int r = 0; r < (FOUR - 1) * step + 3; r++) {
                Row row = row_of(in, y + r - 1, x, step, s);
#pragma GCC unroll 4
                for (int k = 0; k < FOUR; k++) {
                    int d = 3 * (r - k * step);
                    if (d >= 0 && d <= 6) sum[k] += t[d] * row.left + t[d + 1] * row.middle + t[d + 2] * row.right;
                }
            }
            for (int k = 0; k < FOUR; k++) put(out + (long)(y + k * step) * s.width + x, sum[k]);
        }
}

static inline __attribute__((always_inline)) void taps_of_rows(vec *t, const float *restrict gradient, const float *restrict in, int step, Shape s) {
    for (int y = 0; y < s.height; y += FOUR * step)
        for (int x = 0; x < s.width; x += LANES) {
            vec g[FOUR];
            for (int k = 0; k < FOUR; k++) g[k] = at(gradient + (long)(y + k * step) * s.width + x);
#pragma GCC unroll 9
            for (int r = 0; r < (FOUR - 1) * step + 3; r++) {
                Row row = row_of(in, y + r - 1, x, step, s);
#pragma GCC unroll 4
                for (int k = 0; k < FOUR; k++) {
                    int d = 3 * (r - k * step);
                    if (d >= 0 && d <= 6) t[d] += g[k] * row.left, t[d + 1] += g[k] * row.middle, t[d + 2] += g[k] * row.right;
                }
            }
        }
}

/* out = base, where there is one, and the correlation of an image's plane with nine taps, or with them turned round. */
static void depthwise(float *restrict out, const float *restrict base, const float *restrict in, const float *restrict taps, int turned, float *restrict work, Shape s) {
    vec t[9];
    for (int k = 0; k < 9; k++) t[k] = all(taps[turned ? 8 - k : k]);
    int step = rows_a_vector(s);
    if (step == 1) return depthwise_rows(out, base, in, t, 1, s);
    if (step == 2) return depthwise_rows(out, base, in, t, 2, s);
    float *plane = work, *row = work + 2 * s.plane;
    bordered(plane, in, s);
    long first = s.pitch + 1, last = (s.height + 1) * s.pitch - 1;
    for (long q = first; q < last; q += LANES) {
        vec sum = {};
#pragma GCC unroll 9
        for (int k = 0; k < 9; k++) sum += t[k] * at(plane + q + (k / 3 - 1) * s.pitch + k % 3 - 1);
        put(row + q, sum);
    }
    rows(out, s.width, row + first, s.pitch, s.height, s.width);
    for (long p = 0; base && p < s.pixels; p++) out[p] += base[p];
}

/* sums[k] += the gradient times the image's plane, a tap away, as LANES partial sums. */
static void taps_of(float *restrict sums, const float *restrict gradient, const float *restrict in, float *restrict work, Shape s) {
    vec t[9];
    for (int k = 0; k < 9; k++) t[k] = at(sums + k * LANES);
    int step = rows_a_vector(s);
    if (step == 1) taps_of_rows(t, gradient, in, 1, s);
    if (step == 2) taps_of_rows(t, gradient, in, 2, s);
    if (!step) {
        float *plane = work, *bordered_gradient = work + s.plane;
        bordered(plane, in, s), bordered(bordered_gradient, gradient, s);
        long first = s.pitch + 1, last = (s.height + 1) * s.pitch - 1;
        for (long q = first; q < last; q += LANES) {
            vec g = at(bordered_gradient + q);
#pragma GCC unroll 9
            for (int k = 0; k < 9; k++) t[k] += g * at(plane + q + (k / 3 - 1) * s.pitch + k % 3 - 1);
        }
    }
    for (int k = 0; k < 9; k++) put(sums + k * LANES, t[k]);
}

/* The depthwise convolution of a group's planes. */
static void looked(float *restrict out, float *restrict work, Planes planes, const float *taps, int count, Shape s) {
    for (int c = 0; c < s.channels; c++) {
        for (int n = 0; n < count; n++) depthwise(out + c * s.span + n * s.pixels, NULL, planes.at + c * planes.span + n * s.pixels, taps + 9 * c, 0, work, s);
        memset(out + c * s.span + count * s.pixels, 0, (s.full - count * s.pixels) * sizeof(float));
    }
}

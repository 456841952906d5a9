/* 3x3 convolutions of stride one, with a border of one, on a processor (winograd_cpu.py), by Winograd's minimal filtering.

   Maps lie with their channels last and are cut into squares of m x m pixels, m two, three or four, each of which sees a tile of m + 2. A fixed linear map makes as many places
   of a tile as it has pixels, another as many of a filter; at each place the channels of many tiles are multiplied with filters as matrices are, and a third map makes the
   square of it: of 4x4 pixels 36 products where there were 144. */

#include "vectors.h"

#if defined(__AVX512F__)
enum { ROWS = 8, WIDE = 2 }; /* of a product that is in registers: rows, and vectors of a row */
#elif defined(__AVX2__)
enum { ROWS = 4, WIDE = 2 };
#else
enum { ROWS = 4, WIDE = 4 };
#endif
enum { MOST = 6, TAPS = 3, PANEL = WIDE * LANES, BLOCK = 32 }; /* MOST: of a tile; BLOCK: tiles at a time, whose places the second cache holds */
enum { APART = 16 }; /* floats between places, without which all of a tile's would want the same lines of a cache */

#define ALWAYS static inline __attribute__((always_inline)) void
#define ALWAYS_INT static inline __attribute__((always_inline)) int
#define EACH(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)

typedef struct {
    int inputs, outputs, height, width, across, tiles; /* tiles of a row, and of an image */
} Shape;

static Shape shape_of(const int *n, int m) {
    int down = (n[2] + m - 1) / m, across = (n[3] + m - 1) / m;
    return (Shape){n[0], n[1], n[2], n[3], across, down * across};
}

/* The maps in one dimension, by as many of the points 0, 1, -1, 2, -2 as there are places but one, and infinity (Lavin and Gray 2015). Results lie `step` apart. */
ALWAYS tile_map(const vec *d, vec *t, int step, int m) {
    if (m == 2) {
        t[0] = d[0] - d[2], t[step] = d[1] + d[2], t[2 * step] = d[2] - d[1], t[3 * step] = d[3] - d[1];
    } else if (m == 3) {
        vec a = d[3] - d[1];
        t[0] = 2.0f * (d[0] - d[2]) + a;
        t[step] = d[3] - d[2] - 2.0f * d[1], t[2 * step] = d[3] - 3.0f * d[2] + 2.0f * d[1], t[3 * step] = a;
        t[4 * step] = d[4] - d[2] - 2.0f * a;
    } else {
        vec a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
        t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
        t[step] = a + b, t[2 * step] = a - b, t[3 * step] = c + e, t[4 * step] = c - e;
        t[5 * step] = 4.0f * d[1] - 5.0f * d[3] + d[5];
    }
}
ALWAYS filter_map(const vec *g, vec *t, int step, int m) {
    vec a = g[0] + g[2], b = g[1];
    if (m == 2) {
        t[0] = g[0], t[step] = (a + b) * 0.5f, t[2 * step] = (a - b) * 0.5f;
    } else if (m == 3) {
        t[0] = g[0] * 0.5f, t[step] = (a + b) * -0.5f, t[2 * step] = (b - a) * (1.0f / 6), t[3 * step] = g[0] * (1.0f / 6) + b * (1.0f / 3) + g[2] * (2.0f / 3);
    } else {
        vec c = g[0] * (1.0f / 24) + g[2] * (1.0f / 6), e = b * (1.0f / 12);
        t[0] = g[0] * 0.25f, t[step] = (a + b) * (-1.0f / 6), t[2 * step] = (b - a) * (1.0f / 6), t[3 * step] = c + e, t[4 * step] = c - e;
    }
    t[(m + 1) * step] = g[2];
}
ALWAYS square_map(const vec *t, vec *y, int step, int m) {
    vec a = t[1] + t[2], b = t[1] - t[2];
    if (m == 2) {
        y[0] = t[0] + a, y[step] = b + t[3];
    } else if (m == 3) {
        y[0] = t[0] + a + t[3], y[step] = b + 2.0f * t[3], y[2 * step] = a + 4.0f * t[3] + t[4];
    } else {
        vec c = t[3] + t[4], e = t[3] - t[4];
        y[0] = t[0] + a + c, y[step] = b + 2.0f * e, y[2 * step] = a + 4.0f * c, y[3 * step] = b + 8.0f * e + t[5];
    }
}
/* The three turned round, as gradients pass them. */
ALWAYS tile_map_back(const vec *t, vec *d, int step, int m) {
    if (m == 2) {
        d[0] = t[0], d[step] = t[1] - t[2] - t[3], d[2 * step] = t[1] + t[2] - t[0];
    } else if (m == 3) {
        vec a = t[3] - 2.0f * t[4];
        d[0] = 2.0f * t[0], d[step] = 2.0f * (t[2] - t[1]) - t[0] - a;
        d[2 * step] = -2.0f * t[0] - t[1] - 3.0f * t[2] - t[4], d[3 * step] = t[0] + t[1] + t[2] + a;
    } else {
        vec a = t[1] + t[2], b = t[1] - t[2], c = t[3] + t[4], e = 2.0f * (t[3] - t[4]);
        d[0] = 4.0f * t[0], d[step] = 4.0f * (t[5] - b) - e, d[2 * step] = -5.0f * t[0] - 4.0f * a - c;
        d[3 * step] = b + e - 5.0f * t[5], d[4 * step] = t[0] + a + c;
    }
    d[(m + 1) * step] = t[m + 1];
}
ALWAYS square_map_back(const vec *y, vec *t, int step, int m) {
    if (m == 2) {
        t[0] = y[0], t[step] = y[0] + y[1], t[2 * step] = y[0] - y[1];
    } else if (m == 3) {
        vec a = y[0] + y[2];
        t[0] = y[0], t[step] = a + y[1], t[2 * step] = a - y[1], t[3 * step] = y[0] + 2.0f * y[1] + 4.0f * y[2];
    } else {
        vec a = y[0] + y[2], b = y[1] + y[3], c = y[0] + 4.0f * y[2], e = 2.0f * y[1] + 8.0f * y[3];
        t[0] = y[0], t[step] = a + b, t[2 * step] = a - b, t[3 * step] = c + e, t[4 * step] = c - e;
    }
    t[(m + 1) * step] = y[m - 1];
}
ALWAYS filter_map_back(const vec *t, vec *g, int step, int m) {
    if (m == 2) {
        vec a = (t[1] + t[2]) * 0.5f;
        g[0] = t[0] + a, g[step] = (t[1] - t[2]) * 0.5f, g[2 * step] = a + t[3];
    } else if (m == 3) {
        vec a = t[1] * -0.5f, b = t[2] * (1.0f / 6), c = t[3] * (1.0f / 6);
        g[0] = t[0] * 0.5f + a - b + c, g[step] = a + b + 2.0f * c, g[2 * step] = a - b + 4.0f * c + t[4];
    } else {
        vec a = t[1] + t[2], b = t[2] - t[1], c = t[3] + t[4], e = t[3] - t[4];
        g[0] = 0.25f * t[0] - a * (1.0f / 6) + c * (1.0f / 24), g[step] = b * (1.0f / 6) + e * (1.0f / 12), g[2 * step] = (c - a) * (1.0f / 6) + t[5];
    }
}

/* Places of `size` x `size` pixels of an image, from row y and column x on, with zeros outside of it. */
#define PLACES_OF(name, size, map)                                                                                              \
    ALWAYS name(const float *image, int y, int x, int channels, Shape s, float *places, long pitch, int m) {                    \
        int top = -y, bottom = s.height - y, left = -x, right = s.width - x;                                                    \
        for (int c = 0; c < channels; c += LANES) {                                                                             \
            vec half[MOST * MOST], line[MOST];                                                                                  \
            for (int j = 0; j < size; j++) {                                                                                    \
                int inside = j >= left && j < right;                                                                            \
                EACH(i, size) line[i] = inside && i >= top && i < bottom ? at(image + ((long)(y + i) * s.width + x + j) * channels + c) : (vec){}; \
                map(line, half + j, size, m);                                                                                   \
            }                                                                                                                   \
            for (int i = 0; i < m + 2; i++) {                                                                                   \
                map(half + i * size, line, 1, m);                                                                               \
                EACH(j, m + 2) put(places + (i * (m + 2) + j) * pitch + c, line[j]);                                            \
            }                                                                                                                   \
        }                                                                                                                       \
    }
PLACES_OF(places_of_tile, (m + 2), tile_map)
PLACES_OF(places_of_square, m, square_map_back)

static inline void add(float *p, vec x) { put(p, at(p) + x); }

/* Some channels of `size` x `size` pixels of an image, from row y and column x on, from their places, as far as they lie in the image: put there, or added to what is there. */
#define OF_PLACES(name, size, border, map, gives)                                                                               \
    ALWAYS name(const float *places, long pitch, float *image, int y, int x, int count, int channels, Shape s, int m) {         \
        int bottom = s.height - y + border, right = s.width - x + border;                                                       \
        for (int c = 0; c < count; c += LANES) {                                                                                \
            vec half[MOST * MOST], line[MOST];                                                                                  \
            for (int j = 0; j < m + 2; j++) {                                                                                   \
                EACH(i, m + 2) line[i] = at(places + (i * (m + 2) + j) * pitch + c);                                            \
                map(line, half + j, m + 2, m);                                                                                  \
            }                                                                                                                   \
            EACH(i, size) {                                                                                                     \
                map(half + i * (m + 2), line, 1, m);                                                                            \
                float *row = image + ((long)(y + i - border) * s.width + x - border) * channels + c;                            \
                if (i < bottom && (i >= border || y)) EACH(j, size) if (j < right && (j >= border || x)) gives(row + j * channels, line[j]); \
            }                                                                                                                   \
        }                                                                                                                       \
    }
OF_PLACES(square_of, m, 0, square_map, put)
OF_PLACES(tile_of, (m + 2), 1, tile_map_back, add)

/* out[i][n] = the sum over k of a[i * row + k * step] * b[k * line + n], added to what is there where it `adds`; of ROWS rows and some vectors. */
ALWAYS product(const float *restrict a, long row, long step, const float *restrict b, long line, float *restrict out, long pitch, int terms, int adds, int wide) {
    vec s[ROWS][WIDE], x[WIDE];
    EACH(i, ROWS)
        EACH(v, wide) s[i][v] = adds ? at(out + i * pitch + v * LANES) : (vec){};
    for (int k = 0; k < terms; k++, a += step, b += line) {
        EACH(v, wide) x[v] = at(b + v * LANES);
        EACH(i, ROWS) {
            vec f = all(a[i * row]);
            EACH(v, wide) s[i][v] += f * x[v];
        }
    }
    EACH(i, ROWS)
        EACH(v, wide) put(out + i * pitch + v * LANES, s[i][v]);
}

/* The same of a panel's columns (PANEL of them, or fewer: one vector) and more rows, up to a whole number of ROWS. */
ALWAYS products(const float *a, long row, long step, const float *b, long line, float *out, long pitch, int high, int columns, int terms, int adds) {
    for (int i = 0; i < high; i += ROWS)
        if (columns == PANEL)
            product(a + i * row, row, step, b, line, out + i * pitch, pitch, terms, adds, WIDE);
        else
            product(a + i * row, row, step, b, line, out + i * pitch, pitch, terms, adds, 1);
}

static inline int panel_at(int n, int channels) { return channels - n < PANEL ? LANES : PANEL; }
int panel_columns(void) { return PANEL; }
static inline long filters_pitch(int inputs, int outputs) { return (long)(outputs + PANEL - 1) / PANEL * PANEL * inputs + APART; }
static inline int block_at(long first, long tiles) { return tiles - first < BLOCK ? tiles - first : BLOCK; }
/* Where tile t is, of many images: its image's first pixel, and its square's corner there. */
#define TILE_AT(t) long pixels = (t) / s.tiles * s.height * s.width, y = (t) % s.tiles / s.across * m, x = (t) % s.tiles % s.across * m;

/* Filters' places: from [inputs][9][outputs], or for the way back, as they lie, [outputs][9][inputs], into [places][panels of outputs][inputs][PANEL]; of `count` of the inputs. */
ALWAYS filters(const float *from, float *to, int inputs, int outputs, int count, int m) {
    long pitch = filters_pitch(inputs, outputs);
    for (int k = 0; k < count; k++, from += TAPS * TAPS * outputs, to += PANEL)
        for (int n = 0; n < outputs; n += LANES) {
            vec half[MOST * TAPS], line[MOST];
            float *place = to + (long)n / PANEL * PANEL * inputs + n % PANEL;
            for (int j = 0; j < TAPS; j++) {
                EACH(i, TAPS) line[i] = at(from + (i * TAPS + j) * outputs + n);
                filter_map(line, half + j, TAPS, m);
            }
            for (int i = 0; i < m + 2; i++) {
                filter_map(half + i * TAPS, line, 1, m);
                EACH(j, m + 2) put(place + (i * (m + 2) + j) * pitch, line[j]);
            }
        }
}

/* The gradient of filters, [rows][9][inputs], of some inputs from that of a panel of places. */
ALWAYS filters_of(const float *panel, long pitch, float *to, int rows, int count, int inputs, int m) {
    for (int k = 0; k < rows; k++, panel += PANEL, to += TAPS * TAPS * inputs)
        for (int c = 0; c < count; c += LANES) {
            vec half[TAPS * MOST], line[MOST];
            for (int j = 0; j < m + 2; j++) {
                EACH(i, m + 2) line[i] = at(panel + (i * (m + 2) + j) * pitch + c);
                filter_map_back(line, half + j, m + 2, m);
            }
            for (int i = 0; i < TAPS; i++) {
                filter_map_back(half + i * (m + 2), line, 1, m);
                EACH(j, TAPS) put(to + (i * TAPS + j) * inputs + c, line[j]);
            }
        }
}

enum { LINE = 16 }; /* floats of a cache's line */
/* Asks the memory for some channels of the share `part` of `of` of these pixels, which is there when the products that come next are made. */
#define ASK(map, first, count, channels, some, part, of, to_write)                                                              \
    for (long pixel = (first) + (count) * (part) / (of), end = (first) + (count) * ((part) + 1) / (of); pixel < end; pixel++)    \
        for (int c = 0; c < (some); c += LINE) __builtin_prefetch((map) + pixel * (channels) + c, to_write, 2);

/* out of the images by the filters' places; 0 where there was memory for it. */
ALWAYS_INT forward(const float *images, const float *filters, float *out, int count, Shape s, int m) {
    long tiles = (long)count * s.tiles, pitch = (long)BLOCK * s.inputs + APART, out_pitch = BLOCK * PANEL + APART;
    int all_places = (m + 2) * (m + 2);
    float *seen = room(tiles % ROWS ? all_places * pitch : 0, all_places * (pitch + out_pitch)), *made = seen + all_places * pitch; /* rows that are no tile are multiplied, too */
    if (!seen) return 1;
    for (long first = 0; first < tiles; first += BLOCK) {
        int some = block_at(first, tiles);
        for (int t = 0; t < some; t++) {
            TILE_AT(first + t)
            places_of_tile(images + pixels * s.inputs, y - 1, x - 1, s.inputs, s, seen + (long)t * s.inputs, pitch, m);
        }
        long size = s.height * s.width, here = first / s.tiles * size, many = ((first + some - 1) / s.tiles + 1) * size - here; /* the images' pixels */
        for (int n = 0, columns; n < s.outputs; n += columns) {
            columns = panel_at(n, s.outputs);
            for (int p = 0; p < all_places; p++) {
                ASK(out + n, here, many, s.outputs, columns, p, all_places, 1)
                if (n == 0 && first + some < tiles) ASK(images, here + many, many, s.inputs, s.inputs, p, all_places, 0)
                products(seen + p * pitch, s.inputs, 1, filters + p * filters_pitch(s.inputs, s.outputs) + (long)n * s.inputs, PANEL, made + p * out_pitch, PANEL, some, columns,
                         s.inputs, 0);
            }
            for (int t = 0; t < some; t++) {
                TILE_AT(first + t)
                square_of(made + t * PANEL, out_pitch, out + pixels * s.outputs + n, y, x, columns, s.outputs, s, m);
            }
        }
    }
    free(seen);
    return 0;
}

/* of_images, by the filters' places for the way back, and of_filters [outputs][9][inputs] of all these images; either may be NULL. */
ALWAYS_INT backward(const float *images, const float *gradient, float *of_images, float *of_filters, const float *filters, int count, Shape s, int m) {
    long tiles = (long)count * s.tiles, pitch = (long)BLOCK * s.inputs + APART, out_pitch = (long)BLOCK * s.outputs + APART, made_pitch = BLOCK * PANEL + APART;
    long filter_pitch = filters_pitch(s.outputs, s.inputs);
    int all_places = (m + 2) * (m + 2);
    float *behind = room(tiles % ROWS ? all_places * out_pitch : 0, all_places * (pitch + out_pitch + made_pitch + filter_pitch)); /* rows that are no tile are multiplied, too */
    float *seen = behind + all_places * out_pitch, *made = seen + all_places * pitch, *sums = made + all_places * made_pitch;
    if (!behind) return 1;
    for (long first = 0; first < tiles; first += BLOCK) {
        int some = block_at(first, tiles);
        for (int t = 0; t < some; t++) {
            TILE_AT(first + t)
            if (of_filters) places_of_tile(images + pixels * s.inputs, y - 1, x - 1, s.inputs, s, seen + (long)t * s.inputs, pitch, m);
            if (of_images && !x && !y) memset(of_images + pixels * s.inputs, 0, sizeof(float) * s.height * s.width * s.inputs);
            places_of_square(gradient + pixels * s.outputs, y, x, s.outputs, s, behind + (long)t * s.outputs, out_pitch, m);
        }
        for (int n = 0, columns; of_images && n < s.inputs; n += columns) {
            columns = panel_at(n, s.inputs);
            for (int p = 0; p < all_places; p++)
                products(behind + p * out_pitch, s.outputs, 1, filters + p * filter_pitch + (long)n * s.outputs, PANEL, made + p * made_pitch, PANEL, some, columns, s.outputs, 0);
            for (int t = 0; t < some; t++) {
                TILE_AT(first + t)
                tile_of(made + t * PANEL, made_pitch, of_images + pixels * s.inputs + n, y, x, columns, s.inputs, s, m);
            }
        }
        for (int n = 0, columns; of_filters && n < s.inputs; n += columns) {
            columns = panel_at(n, s.inputs);
            float *panel = sums + (long)n * s.outputs;
            for (int p = 0; p < all_places; p++)
                products(behind + p * out_pitch, 1, s.outputs, seen + p * pitch + n, s.inputs, panel + p * filter_pitch, PANEL, s.outputs, columns, some, first > 0);
            if (first + some == tiles) filters_of(panel, filter_pitch, of_filters + n, s.outputs, columns, s.inputs, m); /* while they are in the cache */
        }
    }
    free(behind);
    return 0;
}

/* Numbers: inputs, outputs, and m; or height, width, m. */
static int filters_work(float *const *p, const int *n, int count) {
    if (n[2] == 2) filters(p[0], p[1], n[0], n[1], count, 2);
    if (n[2] == 3) filters(p[0], p[1], n[0], n[1], count, 3);
    if (n[2] == 4) filters(p[0], p[1], n[0], n[1], count, 4);
    return 0;
}
SHARED(all_filters, filters_work)

#define BY_SQUARES(work, ...) (n[4] == 2 ? work(__VA_ARGS__, shape_of(n, 2), 2) : n[4] == 3 ? work(__VA_ARGS__, shape_of(n, 3), 3) : work(__VA_ARGS__, shape_of(n, 4), 4))
static int forward_work(float *const *p, const int *n, int count) { return BY_SQUARES(forward, p[0], p[2], p[1], count); }
SHARED(all_forward, forward_work)

static int backward_work(float *const *p, const int *n, int count) { return BY_SQUARES(backward, p[0], p[1], p[2], p[3], p[4], count); }
SHARED(all_backward, backward_work)

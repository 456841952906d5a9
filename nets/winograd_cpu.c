/* 3x3 convolutions of stride one, with a border of one, on a processor (winograd_cpu.py), by Winograd's minimal filtering.

   Maps lie with their channels last and are cut into squares of m x m pixels, m two, three or four, each of which sees a tile of m + 2. A fixed linear map makes as many places
   of a tile as it has pixels, another as many of a filter; at each place the channels of many tiles are multiplied with filters as matrices are, and a third map makes the
   square of it: of 4x4 pixels 36 products where there were 144.

   Of images in bf16 (`half`) places are bf16, too, pairs of neighbouring terms of a sum in a word of 32 bits, so that rows of them lie as rows of floats do; all sums are floats. */

#include "vectors.h"
#include "winograd_maps.h"

#if defined(__AVX512F__)
enum { ROWS = 8, WIDE = 2 }; /* of a product that is in registers: rows, and vectors of a row */
#elif defined(__AVX2__)
enum { ROWS = 4, WIDE = 2 };
#else
enum { ROWS = 4, WIDE = 4 };
#endif
enum { MOST = 6, TAPS = 3, PANEL = WIDE * LANES, BLOCK = 32 }; /* MOST: of a tile; BLOCK: tiles at a time, whose places the second cache holds */
enum { APART = 16 }; /* floats between places, without which all of a tile's would want the same lines of a cache */

#define ALWAYS_VEC static inline __attribute__((always_inline)) vec
#define EACH(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)

typedef struct {
    int inputs, outputs, height, width, across, tiles; /* tiles of a row, and of an image */
} Shape;

static Shape shape_of(const int *n, int m) {
    int down = (n[2] + m - 1) / m, across = (n[3] + m - 1) / m;
    return (Shape){n[0], n[1], n[2], n[3], across, down * across};
}

enum { ROW = 1, PAIRED = 2 };
/* Where places of a tile go, by `pitch` floats from one place to the next: into a row of the tile's channels, of halves two in a word; or, of halves, into words with the same
   channel of the tile before or behind. */
typedef struct {
    float *row, *paired;
    long pitch;
    int second; /* of a pair: the first comes before it */
} Places;
ALWAYS keep(Places to, int place, int c, vec x, int half, int into) {
    float *row = to.row + place * to.pitch;
    if (into & ROW) set(row, c, x, half);
    if (into & PAIRED) {
        vecu *pair = (vecu *)(to.paired + place * to.pitch + c);
        *pair = (*pair & -(unsigned)to.second) | words(rounded(x)) << 16 * to.second;
    }
}

typedef struct {
    long image; /* its first pixel */
    int y, x;
} Spot;

/* Places of `size` x `size` pixels of a map, from a spot in an image on, with zeros outside of it. */
#define PLACES_OF(name, size, of)                                                                                               \
    ALWAYS name(const void *map, Spot from, int channels, const Shape *s, Places to, int m, int half, int into) {               \
        int width = s->width, top = -from.y, bottom = s->height - from.y, left = -from.x, right = width - from.x;               \
        for (int c = 0; c < channels; c += LANES) {                                                                             \
            vec some[MOST * MOST], line[MOST];                                                                                  \
            for (int j = 0; j < size; j++) {                                                                                    \
                int inside = j >= left && j < right;                                                                            \
                EACH(i, size) line[i] = inside && i >= top && i < bottom ? get(map, (from.image + (long)(from.y + i) * width + from.x + j) * channels + c, half) : (vec){}; \
                of(line, some + j, size, m);                                                                                    \
            }                                                                                                                   \
            for (int i = 0; i < m + 2; i++) {                                                                                   \
                of(some + i * size, line, 1, m);                                                                                \
                EACH(j, m + 2) keep(to, i * (m + 2) + j, c, line[j], half, into);                                               \
            }                                                                                                                   \
        }                                                                                                                       \
    }
PLACES_OF(places_of_tile, (m + 2), tile_map)
PLACES_OF(places_of_square, m, square_map_back)

ALWAYS add(void *map, long i, vec x, int half) { set(map, i, get(map, i, half) + x, half); }

/* Channels from `first` on of `size` x `size` pixels of a map, from a spot on or, of those with a border, one pixel before it, from their places, as far as they lie in the
   image: put there, or added to what is there. */
#define OF_PLACES(name, size, border, of, gives)                                                                                \
    ALWAYS name(const float *places, long pitch, void *map, Spot to, int first, int count, int channels, const Shape *s, int m, int half) { \
        int width = s->width, bottom = s->height - to.y + border, right = width - to.x + border;                                \
        for (int c = 0; c < count; c += LANES) {                                                                                \
            vec some[MOST * MOST], line[MOST];                                                                                  \
            for (int j = 0; j < m + 2; j++) {                                                                                   \
                EACH(i, m + 2) line[i] = at(places + (i * (m + 2) + j) * pitch + c);                                            \
                of(line, some + j, m + 2, m);                                                                                   \
            }                                                                                                                   \
            EACH(i, size) {                                                                                                     \
                of(some + i * (m + 2), line, 1, m);                                                                             \
                long row = (to.image + (long)(to.y + i - border) * width + to.x - border) * channels + first + c;               \
                if (i < bottom && (i >= border || to.y)) EACH(j, size) if (j < right && (j >= border || to.x)) gives(map, row + j * channels, line[j], half); \
            }                                                                                                                   \
        }                                                                                                                       \
    }
OF_PLACES(square_of, m, 0, square_map, set)
OF_PLACES(tile_of, (m + 2), 1, tile_map_back, add)

/* out[i][n] = the sum over k of a[i * row + k * step] * b[k * line + n], added to what is there where it `adds`; of ROWS rows and some vectors of a panel. */
ALWAYS product(const float *restrict a, long row, long step, const float *restrict b, long line, float *restrict out, int terms, int adds, int wide, int half) {
    vec s[ROWS][WIDE], x[WIDE];
    EACH(i, ROWS)
        EACH(v, wide) s[i][v] = adds ? at(out + i * PANEL + v * LANES) : (vec){};
    for (int k = 0; k < terms; k++, a += step, b += line) {
        EACH(v, wide) x[v] = held(at(b + v * LANES));
        EACH(i, ROWS) {
            vec f = same(a + i * row);
            EACH(v, wide) s[i][v] = more(s[i][v], f, x[v], half);
        }
    }
    EACH(i, ROWS)
        EACH(v, wide) put(out + i * PANEL + v * LANES, s[i][v]);
}

/* The same of a panel's columns (PANEL of them, or fewer: one vector) and more rows, up to a whole number of ROWS. */
ALWAYS products(const float *a, long row, long step, const float *b, long line, float *out, int high, int columns, int terms, int adds, int half) {
    for (int i = 0; i < high; i += ROWS, a += ROWS * row, out += ROWS * PANEL)
        if (columns == PANEL && half)
            product(a, row, step, b, line, out, terms, adds, WIDE, 1);
        else if (columns == PANEL)
            product(a, row, step, b, line, out, terms, adds, WIDE, 0);
        else if (half)
            product(a, row, step, b, line, out, terms, adds, 1, 1);
        else
            product(a, row, step, b, line, out, terms, adds, 1, 0);
}

static inline int panel_at(int n, int channels) { return channels - n < PANEL ? LANES : PANEL; }
int panel_columns(void) { return PANEL; }
static inline long filters_pitch(int inputs, int outputs, int half) { return (long)(outputs + PANEL - 1) / PANEL * PANEL * (inputs >> half) + APART; }
static inline int block_at(long first, long tiles) { return tiles - first < BLOCK ? tiles - first : BLOCK; }
/* The corner of a tile's square, of many images; and that of the tile itself. */
static inline Spot square_at(long t, Shape s, int m) { return (Spot){t / s.tiles * s.height * s.width, t % s.tiles / s.across * m, t % s.tiles % s.across * m}; }
static inline Spot around(Spot square) { return (Spot){square.image, square.y - 1, square.x - 1}; }

/* Filters' places: from [inputs][9][outputs], or for the way back, as they lie, [outputs][9][inputs], into [places][panels of outputs][inputs][PANEL], of halves two inputs in a word;
   of `count` of the inputs. */
ALWAYS filters(const float *from, float *to, int inputs, int outputs, int count, int m, int half) {
    long pitch = filters_pitch(inputs, outputs, half);
    for (int k = 0; k < count; k++, from += TAPS * TAPS * outputs)
        for (int n = 0; n < outputs; n += LANES) {
            vec some[MOST * TAPS], line[MOST];
            float *place = to + (long)n / PANEL * PANEL * (inputs >> half) + (k >> half) * PANEL + n % PANEL;
            for (int j = 0; j < TAPS; j++) {
                EACH(i, TAPS) line[i] = at(from + (i * TAPS + j) * outputs + n);
                filter_map(line, some + j, TAPS, m);
            }
            for (int i = 0; i < m + 2; i++) {
                filter_map(some + i * TAPS, line, 1, m);
                EACH(j, m + 2) keep((Places){place, place, pitch, k & 1}, i * (m + 2) + j, 0, line[j], half, half ? PAIRED : ROW);
            }
        }
}

/* The gradient of filters, [rows][9][inputs], of some inputs from that of a panel of places. */
ALWAYS filters_of(const float *panel, long pitch, float *to, int rows, int count, int inputs, int m) {
    for (int k = 0; k < rows; k++, panel += PANEL, to += TAPS * TAPS * inputs)
        for (int c = 0; c < count; c += LANES) {
            vec some[TAPS * MOST], line[MOST];
            for (int j = 0; j < m + 2; j++) {
                EACH(i, m + 2) line[i] = at(panel + (i * (m + 2) + j) * pitch + c);
                filter_map_back(line, some + j, m + 2, m);
            }
            for (int i = 0; i < TAPS; i++) {
                filter_map_back(some + i * (m + 2), line, 1, m);
                EACH(j, TAPS) put(to + (i * TAPS + j) * inputs + c, line[j]);
            }
        }
}

/* What is compiled for squares of each side, for maps of floats and of halves. */
typedef struct {
    void (*tile)(const void *map, Spot from, int channels, const Shape *s, Places to);
    void (*summed_tile)(const void *map, Spot from, int channels, const Shape *s, Places to); /* for sums over tiles */
    void (*square)(const void *map, Spot from, int channels, const Shape *s, Places to);      /* for those, and others */
    void (*square_of)(const float *places, long pitch, void *map, Spot to, int first, int count, int channels, const Shape *s);
    void (*tile_of)(const float *places, long pitch, void *map, Spot to, int first, int count, int channels, const Shape *s);
    void (*filters)(const float *from, float *to, int inputs, int outputs, int count);
    void (*filters_of)(const float *panel, long pitch, float *to, int rows, int count, int inputs);
} Kind;
#define ONCE static __attribute__((noinline)) void
#define COMPILED(m, half, paired)                                                                                               \
    ONCE tile_##m##half(const void *map, Spot from, int n, const Shape *s, Places to) { places_of_tile(map, from, n, s, to, m, half, ROW); } \
    ONCE square_##m##half(const void *map, Spot from, int n, const Shape *s, Places to) { places_of_square(map, from, n, s, to, m, half, ROW | paired); } \
    ONCE square_of_##m##half(const float *places, long pitch, void *map, Spot to, int first, int count, int n, const Shape *s) { \
        square_of(places, pitch, map, to, first, count, n, s, m, half);                                                         \
    }                                                                                                                           \
    ONCE tile_of_##m##half(const float *places, long pitch, void *map, Spot to, int first, int count, int n, const Shape *s) {  \
        tile_of(places, pitch, map, to, first, count, n, s, m, half);                                                           \
    }                                                                                                                           \
    ONCE filters_##m##half(const float *from, float *to, int inputs, int outputs, int count) { filters(from, to, inputs, outputs, count, m, half); }
#define SQUARES(m)                                                                                                              \
    COMPILED(m, 0, ROW)                                                                                                         \
    COMPILED(m, 1, PAIRED)                                                                                                      \
    ONCE paired_##m(const void *map, Spot from, int n, const Shape *s, Places to) { places_of_tile(map, from, n, s, to, m, 1, PAIRED); } \
    ONCE filters_of_##m(const float *panel, long pitch, float *to, int rows, int count, int n) { filters_of(panel, pitch, to, rows, count, n, m); }
SQUARES(2)
SQUARES(3)
SQUARES(4)
#define KINDS(m)                                                                                                                \
    {{tile_##m##0, tile_##m##0, square_##m##0, square_of_##m##0, tile_of_##m##0, filters_##m##0, filters_of_##m},               \
     {tile_##m##1, paired_##m, square_##m##1, square_of_##m##1, tile_of_##m##1, filters_##m##1, filters_of_##m}}
static const Kind kinds[][2] = {KINDS(2), KINDS(3), KINDS(4)};

enum { LINE = 64 }; /* bytes of a cache's line */
/* Asks the memory for some channels of the share `part` of `of` of these pixels, which is there when the products that come next are made. */
#define ASK(map, first, count, channels, from, some, part, of, to_write)                                                        \
    for (long size = half ? 2 : 4, pixel = (first) + (count) * (part) / (of), end = (first) + (count) * ((part) + 1) / (of); pixel < end; pixel++) \
        for (int c = 0; c < (some) * size; c += LINE) __builtin_prefetch((const char *)(map) + (pixel * (channels) + (from)) * size + c, to_write, 2);

/* out of the images by the filters' places; 0 where there was memory for it. */
static int forward(const void *images, const float *filters, void *out, int count, Shape s, int m, int half) {
    const Kind *kind = &kinds[m - 2][half];
    int terms = s.inputs >> half, all_places = (m + 2) * (m + 2);
    long tiles = (long)count * s.tiles, pitch = (long)BLOCK * terms + APART, out_pitch = BLOCK * PANEL + APART, filter_pitch = filters_pitch(s.inputs, s.outputs, half);
    float *seen = room(tiles % ROWS ? all_places * pitch : 0, all_places * (pitch + out_pitch)), *made = seen + all_places * pitch; /* rows that are no tile are multiplied, too */
    if (!seen) return 1;
    for (long first = 0; first < tiles; first += BLOCK) {
        int some = block_at(first, tiles);
        for (int t = 0; t < some; t++) kind->tile(images, around(square_at(first + t, s, m)), s.inputs, &s, (Places){seen + t * terms, NULL, pitch, 0});
        long size = s.height * s.width, here = first / s.tiles * size, many = ((first + some - 1) / s.tiles + 1) * size - here; /* the images' pixels */
        for (int n = 0, columns; n < s.outputs; n += columns) {
            columns = panel_at(n, s.outputs);
            for (int p = 0; p < all_places; p++) {
                ASK(out, here, many, s.outputs, n, columns, p, all_places, 1)
                if (n == 0 && first + some < tiles) ASK(images, here + many, many, s.inputs, 0, s.inputs, p, all_places, 0)
                products(seen + p * pitch, terms, 1, filters + p * filter_pitch + (long)n * terms, PANEL, made + p * out_pitch, some, columns, terms, 0, half);
            }
            for (int t = 0; t < some; t++) kind->square_of(made + t * PANEL, out_pitch, out, square_at(first + t, s, m), n, columns, s.outputs, &s);
        }
    }
    free(seen);
    return 0;
}

/* of_images, by the filters' places for the way back, and of_filters [outputs][9][inputs] of all these images; either may be NULL. */
static int backward(const void *images, const void *gradient, void *of_images, float *of_filters, const float *filters, int count, Shape s, int m, int half) {
    const Kind *kind = &kinds[m - 2][half];
    int terms = s.outputs >> half, all_places = (m + 2) * (m + 2);
    long tiles = (long)count * s.tiles, pitch = (long)(BLOCK >> half) * s.inputs + APART, out_pitch = (long)BLOCK * terms + APART, made_pitch = BLOCK * PANEL + APART;
    long filter_pitch = filters_pitch(s.outputs, s.inputs, half), sums_pitch = filters_pitch(s.outputs, s.inputs, 0), image = (long)s.height * s.width * s.inputs * (half ? 2 : 4);
    float *behind = room(tiles % ROWS ? all_places * out_pitch : 0, all_places * ((1 + half) * out_pitch + pitch + made_pitch + sums_pitch)); /* rows that are no tile are multiplied, too */
    float *paired = behind + half * all_places * out_pitch, *seen = paired + all_places * out_pitch, *made = seen + all_places * pitch, *sums = made + all_places * made_pitch;
    if (!behind) return 1;
    for (long first = 0; first < tiles; first += BLOCK) {
        int some = block_at(first, tiles);
        for (int t = 0; t < some; t++) {
            Spot at = square_at(first + t, s, m);
            if (of_filters) kind->summed_tile(images, around(at), s.inputs, &s, (Places){seen + t * s.inputs, seen + t / 2 * s.inputs, pitch, t % 2});
            if (of_images && !at.x && !at.y) memset((char *)of_images + at.image / (s.height * s.width) * image, 0, image);
            kind->square(gradient, at, s.outputs, &s, (Places){behind + t * terms, paired + t / 2 * s.outputs, out_pitch, t % 2});
        }
        for (int n = 0, columns; of_images && n < s.inputs; n += columns) {
            columns = panel_at(n, s.inputs);
            for (int p = 0; p < all_places; p++)
                products(behind + p * out_pitch, terms, 1, filters + p * filter_pitch + (long)n * terms, PANEL, made + p * made_pitch, some, columns, terms, 0, half);
            for (int t = 0; t < some; t++) kind->tile_of(made + t * PANEL, made_pitch, of_images, square_at(first + t, s, m), n, columns, s.inputs, &s);
        }
        for (int n = 0, columns; of_filters && n < s.inputs; n += columns) {
            columns = panel_at(n, s.inputs);
            float *panel = sums + (long)n * s.outputs;
            for (int p = 0; p < all_places; p++)
                products(paired + p * out_pitch, 1, s.outputs, seen + p * pitch + n, s.inputs, panel + p * sums_pitch, s.outputs, columns, (some + half) >> half, first > 0, half);
            if (first + some == tiles) kind->filters_of(panel, sums_pitch, of_filters + n, s.outputs, columns, s.inputs); /* while they are in the cache */
        }
    }
    free(behind);
    return 0;
}

/* Numbers: inputs, outputs, m, half; or inputs, outputs, height, width, m, half. */
static int filters_work(float *const *p, const int *n, int count) {
    kinds[n[2] - 2][n[3]].filters(p[0], p[1], n[0], n[1], count);
    return 0;
}
SHARED(all_filters, filters_work)

static int forward_work(float *const *p, const int *n, int count) { return forward(p[0], p[2], p[1], count, shape_of(n, n[4]), n[4], n[5]); }
SHARED(all_forward, forward_work)

static int backward_work(float *const *p, const int *n, int count) { return backward(p[0], p[1], p[2], p[3], p[4], count, shape_of(n, n[4]), n[4], n[5]); }
SHARED(all_backward, backward_work)

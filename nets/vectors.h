/* What the C of processors is written in: vectors of 512 bits, of 256 or, of ARM, of 128. */

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, EDGE = 8 }; /* floats of a vector; those of a part of one, by which maps are copied and turned */
#elif defined(__AVX2__)
enum { LANES = 8, EDGE = 8 };
#elif defined(__aarch64__)
enum { LANES = 4, EDGE = 4 };
#else
#error "without AVX2 torch's own operations are the better choice"
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int veci __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float part __attribute__((vector_size(4 * EDGE), aligned(4), may_alias));
typedef int parti __attribute__((vector_size(4 * EDGE)));
#ifdef __clang__
#define MIXED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* before its twelfth version gcc knows no other */
#define MIXED(a, b, ...) __builtin_shuffle(a, b, (parti){__VA_ARGS__})
#endif

static inline vec at(const float *p) { return *(const vec *)p; }
static inline void put(float *p, vec x) { *(vec *)p = x; }
static inline vec all(float x) { return x - (vec){}; }
static inline float sum(vec x) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += x[i];
    return s;
}

/* Room at the beginning of a cache line, since a vector that lies across two takes two loads; the first of it zeros. */
static inline float *room(long zeros, long others) {
    float *p = NULL;
    if (posix_memalign((void **)&p, 64, (zeros + others) * sizeof(float))) return NULL;
    return memset(p, 0, zeros * sizeof(float));
}

/* Rows of a few floats, for which a call of memcpy takes longer than the copy. */
static inline void rows(float *restrict to, long to_pitch, const float *restrict from, long from_pitch, int height, int width) {
    int whole = width / EDGE * EDGE;
    for (int y = 0; y < height; y++, to += to_pitch, from += from_pitch) {
        for (int x = 0; x < whole; x += EDGE) *(part *)(to + x) = *(const part *)(from + x);
        for (int x = whole; x < width; x++) to[x] = from[x];
    }
}

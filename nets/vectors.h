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
typedef unsigned vecu __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef unsigned short halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
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
#if defined(__AVX2__) && !defined(__AVX512F__)
/* In a register from here on: where several products take a vector, gcc would rather read it for each, and the processor makes no more of them than it reads. */
static inline __attribute__((always_inline)) vec held(vec x) {
    __asm__("" : "+x"(x));
    return x;
}
#else
static inline vec held(vec x) { return x; }
#endif
typedef int word __attribute__((may_alias));
static inline vec same(const float *p) { return (vec)(*(const word *)p - (veci){}); } /* the 32 bits, whatever they are */
/* bf16 is the upper half of a float, rounded to the nearest, of two to the even one. */
static inline halves rounded(vec x) {
#ifdef __AVX512BF16__
    return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    vecu bits = (vecu)x, whole = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, none = (vecu)(x != x);
    return __builtin_convertvector((whole & ~none) | (0x7fc0 & none), halves);
#endif
}
static inline vecu words(halves x) { return __builtin_convertvector(x, vecu); }
/* Values of a map, of float or, where it is half, bf16. */
static inline __attribute__((always_inline)) vec get(const void *map, long i, int half) {
    return half ? (vec)(words(*(const halves *)((const unsigned short *)map + i)) << 16) : at((const float *)map + i);
}
static inline __attribute__((always_inline)) void set(void *map, long i, vec x, int half) {
    if (half)
        *(halves *)((unsigned short *)map + i) = rounded(x);
    else
        put((float *)map + i, x);
}
/* Words of 32 bits that hold two values in bf16 each, the first in the lower half. */
static inline vecu paired(vec first, vec second) {
#ifdef __AVX512BF16__
    veci order = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
    return (vecu)_mm512_permutexvar_epi16((__m512i)order, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
    return words(rounded(first)) | words(rounded(second)) << 16;
#endif
}
/* s + f * x; of halves, which are such words, both products of each. */
#ifdef __AVX512BF16__
int fast_halves(void) { return 1; }
static inline vec both(vec s, vec f, vec x) { return (vec)_mm512_dpbf16_ps((__m512)s, (__m512bh)f, (__m512bh)x); }
#else /* of no use but to be tested everywhere */
int fast_halves(void) { return 0; }
static inline vec upper(vec x) { return (vec)((vecu)x & 0xffff0000u); }
static inline vec lower(vec x) { return (vec)((vecu)x << 16); }
static inline vec both(vec s, vec f, vec x) { return s + lower(f) * lower(x) + upper(f) * upper(x); }
#endif
static inline __attribute__((always_inline)) vec more(vec s, vec f, vec x, int half) {
    if (half) return both(s, f, x);
    return s + f * x;
}
static inline float sum(vec x) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += x[i];
    return s;
}

#ifdef __AVX512F__ /* its instruction that guesses 14 bits, and a step of Newton's: a division takes the time of several products */
static inline vec inverse(vec x) {
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
}
static inline vec between(vec x, float limit) { return (vec)_mm512_max_ps((__m512)all(-limit), _mm512_min_ps((__m512)all(limit), (__m512)x)); }
static inline vec times_two_to(vec x, vec whole) { return (vec)_mm512_scalef_ps((__m512)x, (__m512)whole); }
#else
static inline vec inverse(vec x) { return 1.0f / x; }
static inline vec times_two_to(vec x, vec whole) { return x * (vec)((__builtin_convertvector(whole, veci) + 127) << 23); }
#ifdef __AVX2__
static inline vec between(vec x, float limit) { return (vec)_mm256_max_ps((__m256)all(-limit), _mm256_min_ps((__m256)all(limit), (__m256)x)); }
#else
static inline vec between(vec x, float limit) { return (vec)vmaxq_f32((float32x4_t)all(-limit), vminq_f32((float32x4_t)all(limit), (float32x4_t)x)); }
#endif
#endif

/* 1 / (1 + exp(-x)): 2 to the nearest whole number times 2 to the rest, by the polynomial of least relative error (8e-8). */
static inline vec sigmoid(vec x) {
    x = between(x * -1.44269504f, 126.0f);
    vec whole = (x + 12582912.0f) - 12582912.0f, r = x - whole;
    vec p = 1.32764725e-3f * r + 9.67554096e-3f;
    p = p * r + 5.55071309e-2f;
    p = p * r + 2.40221202e-1f;
    p = p * r + 6.93146944e-1f;
    return inverse(1.0f + times_two_to(p * r + 1.00000012f, whole));
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

enum { PART = 32 }; /* images that a thread takes at a time, whatever the number of threads: so sums are the same bits */

typedef struct {
    int (*part)(const void *task, int number, int first, int count); /* other than 0: it failed */
    const void *task;
    int count, threads, failed;
} Parts;

static inline void some_parts(Parts *p, int own, int threads) {
    for (int k = own, first = own * PART; first < p->count; k += threads, first = k * PART) {
        int left = p->count - first;
        if (p->part(p->task, k, first, left < PART ? left : PART)) p->failed = 1;
    }
}

/* The task by all parts of so many images; by the threads of the OpenMP that torch has loaded, which its own operations use, too: others would wait for a core while
   those, for some time after each operation, look out for the next. */
#ifdef __APPLE__
#include <dispatch/dispatch.h>
static void by_number(void *of, size_t own) { some_parts(of, own, ((Parts *)of)->threads); }
static inline void by_threads(Parts *p) { dispatch_apply_f(p->threads, dispatch_get_global_queue(QOS_CLASS_USER_INITIATED, 0), p, by_number); }
#else
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak)), omp_get_num_threads(void) __attribute__((weak));
static void by_own_number(void *of) { some_parts(of, omp_get_thread_num(), omp_get_num_threads()); }
static inline void by_threads(Parts *p) {
    if (GOMP_parallel && omp_get_thread_num && omp_get_num_threads)
        GOMP_parallel(by_own_number, p, p->threads, 0);
    else
        some_parts(p, 0, 1);
}
#endif

static inline int by_parts(int (*part)(const void *, int, int, int), const void *task, int count, int threads) {
    int most = (count + PART - 1) / PART;
    Parts p = {part, task, count, threads < most ? threads : most, 0};
    if (p.threads > 1)
        by_threads(&p);
    else
        some_parts(&p, 0, 1);
    return p.failed;
}

/* An operator's work as others call it: addresses of maps, of sums and of what all images share; numbers. */
typedef int (*Work)(float *const *at, const int *numbers, int count);

typedef struct {
    Work work;
    float *const *at;
    const long *by_image, *by_part; /* floats from one image, or one part, to the next */
    int many;
    const int *numbers;
} Call;

static inline int call_part(const void *task, int number, int first, int count) {
    const Call *c = task;
    float *own[c->many];
    for (int i = 0; i < c->many; i++) own[i] = c->at[i] + first * c->by_image[i] + number * c->by_part[i];
    return c->work(own, c->numbers, count);
}

/* `name`, which Python calls (native.py), has the work done by all parts. */
#define SHARED(name, work)                                                                                                                             \
    int name(float *const *at, const long *by_image, const long *by_part, int many, const int *numbers, int count, int threads) {                       \
        Call call = {work, at, by_image, by_part, many, numbers};                                                                                       \
        return by_parts(call_part, &call, count, threads);                                                                                              \
    }

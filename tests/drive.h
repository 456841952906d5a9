/* What the programs have in common that call the operators in C: buffers of just their size, and what came of them. */

#include <math.h>
#include <stdio.h>
#ifdef __aarch64__ /* where no sanitizer runs, a page behind the buffer that nobody may touch; never freed */
#include <sys/mman.h>
static void *buffer(long bytes) {
    long page = 4096, whole = (bytes + page - 1) / page * page;
    char *start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + whole, page, PROT_NONE)) exit(1);
    return start + whole - bytes;
}
static void freed(void *buffer) { (void)buffer; }
#else
static void *buffer(long bytes) { return malloc(bytes); }
static void freed(void *buffer) { free(buffer); }
#endif

static float *filled(long count) {
    float *values = buffer(count * sizeof(float));
    for (long i = 0; i < count; i++) values[i] = (rand() % 2000 - 1000) / 700.0f;
    return values;
}

static double limit = 1e-5; /* by which two processors may differ: of what is rounded to bf16, by what a value makes that goes up here and down there */

/* A sum in which every place counts for something else than its neighbours, and one of sizes, by which to judge the first; and the limit. */
static void told(const float *values, long count) {
    double placed = 0, size = 0;
    for (long i = 0; i < count; i++) placed += values[i] * (i % 13 + 1), size += fabs(values[i]);
    printf("%.9e %.9e %g\n", placed, size, limit);
}

/* A map of floats, or of bf16. */
static inline void *map_of(long count, int half) {
    float *whole = filled(count);
    if (!half) return whole;
    unsigned short *map = buffer(count * sizeof(short)), bits[2];
    for (long i = 0; i < count; i++) memcpy(bits, whole + i, sizeof bits), map[i] = bits[1];
    freed(whole);
    return map;
}

static inline void told_map(const void *map, long count, int half) {
    if (!half) return told(map, count);
    float *whole = buffer(count * sizeof(float));
    for (long i = 0; i < count; i++) {
        unsigned short bits[2] = {0, ((const unsigned short *)map)[i]};
        memcpy(whole + i, bits, sizeof bits);
    }
    told(whole, count);
    freed(whole);
}

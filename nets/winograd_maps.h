/* Winograd's minimal filtering of 3x3 filters in one dimension, for squares of m = 2, 3 and 4 pixels (winograd_cpu.c), which knows m when it is compiled, so that no
   branch by it is left.

   F(m, 3): square = square_map(filter_map(filter) * tile_map(tile)), place by place (Lavin and Gray 2015, arXiv:1509.09308). */

#define ALWAYS static inline __attribute__((always_inline)) void

/* The maps by polynomials at as many points as there are places, the last of them infinity: 0, 1 and -1; 1/2, -1/2, 3/2 and -3/2;
   0, a, -a, 2a and -2a with a = 3/4, since larger powers, and points that lie closer, round more: for 1/2, 3/4 and 3/2 some half as much as for 1 and 2. Results lie `step` apart. */
#define A1 0.75f
#define A2 (A1 * A1)
#define A3 (A2 * A1)
#define A4 (A2 * A2)
ALWAYS tile_map(const vec *d, vec *t, int step, int m) {
    if (m == 2) {
        t[0] = d[0] - d[2], t[step] = d[1] + d[2], t[2 * step] = d[2] - d[1], t[3 * step] = d[3] - d[1];
    } else if (m == 3) {
        vec a = d[3] - 2.25f * d[1], b = 0.5f * d[2] - 1.125f * d[0], c = d[3] - 0.25f * d[1], e = 1.5f * d[2] - 0.375f * d[0];
        t[0] = b + a, t[step] = b - a, t[2 * step] = e + c, t[3 * step] = e - c;
        t[4 * step] = d[4] - 2.5f * d[2] + 0.5625f * d[0];
    } else {
        vec a = d[4] - 4 * A2 * d[2], b = d[3] - 4 * A2 * d[1], c = d[4] - A2 * d[2], e = d[3] - A2 * d[1];
        t[0] = 4 * A4 * d[0] - 5 * A2 * d[2] + d[4];
        t[step] = a + A1 * b, t[2 * step] = a - A1 * b, t[3 * step] = c + 2 * A1 * e, t[4 * step] = c - 2 * A1 * e;
        t[5 * step] = 4 * A4 * d[1] - 5 * A2 * d[3] + d[5];
    }
}
ALWAYS filter_map(const vec *g, vec *t, int step, int m) {
    if (m == 2) {
        vec a = g[0] + g[2], b = g[1];
        t[0] = g[0], t[step] = (a + b) * 0.5f, t[2 * step] = (a - b) * 0.5f;
    } else if (m == 3) {
        vec a = -0.5f * g[0] - 0.125f * g[2], b = -0.25f * g[1], c = (1.0f / 6) * g[0] + 0.375f * g[2], e = 0.25f * g[1];
        t[0] = a + b, t[step] = a - b, t[2 * step] = c + e, t[3 * step] = c - e;
    } else {
        vec a = g[0] * (-1 / (6 * A4)) + g[2] * (-1 / (6 * A2)), b = g[1] * (-1 / (6 * A3));
        vec c = g[0] * (1 / (24 * A4)) + g[2] * (1 / (6 * A2)), e = g[1] * (1 / (12 * A3));
        t[0] = g[0] * (1 / (4 * A4)), t[step] = a + b, t[2 * step] = a - b, t[3 * step] = c + e, t[4 * step] = c - e;
    }
    t[(m + 1) * step] = g[2];
}
ALWAYS square_map(const vec *t, vec *y, int step, int m) {
    if (m == 2) {
        y[0] = t[0] + t[1] + t[2], y[step] = t[1] - t[2] + t[3];
    } else if (m == 3) {
        vec a = t[0] + t[1], b = t[0] - t[1], c = t[2] + t[3], e = t[2] - t[3];
        y[0] = a + c, y[step] = 0.5f * b + 1.5f * e, y[2 * step] = 0.25f * a + 2.25f * c + t[4];
    } else {
        vec a = t[1] + t[2], b = t[1] - t[2], c = t[3] + t[4], e = t[3] - t[4];
        y[0] = t[0] + a + c, y[step] = A1 * b + 2 * A1 * e, y[2 * step] = A2 * a + 4 * A2 * c, y[3 * step] = A3 * b + 8 * A3 * e + t[5];
    }
}
/* The three turned round, as gradients pass them. */
ALWAYS tile_map_back(const vec *t, vec *d, int step, int m) {
    if (m == 2) {
        d[0] = t[0], d[step] = t[1] - t[2] - t[3], d[2 * step] = t[1] + t[2] - t[0];
    } else if (m == 3) {
        vec a = t[0] + t[1], b = t[0] - t[1], c = t[2] + t[3], e = t[2] - t[3];
        d[0] = 0.5625f * t[4] - 1.125f * a - 0.375f * c, d[step] = -2.25f * b - 0.25f * e;
        d[2 * step] = 0.5f * a + 1.5f * c - 2.5f * t[4], d[3 * step] = b + e;
    } else {
        vec a = t[1] + t[2], b = A1 * (t[1] - t[2]), c = t[3] + t[4], e = 2 * A1 * (t[3] - t[4]);
        d[0] = 4 * A4 * t[0], d[step] = 4 * A4 * t[5] - 4 * A2 * b - A2 * e, d[2 * step] = -5 * A2 * t[0] - 4 * A2 * a - A2 * c;
        d[3 * step] = b + e - 5 * A2 * t[5], d[4 * step] = t[0] + a + c;
    }
    d[(m + 1) * step] = t[m + 1];
}
ALWAYS square_map_back(const vec *y, vec *t, int step, int m) {
    if (m == 2) {
        t[0] = y[0], t[step] = y[0] + y[1], t[2 * step] = y[0] - y[1];
    } else if (m == 3) {
        vec a = y[0] + 0.25f * y[2], b = 0.5f * y[1], c = y[0] + 2.25f * y[2], e = 1.5f * y[1];
        t[0] = a + b, t[step] = a - b, t[2 * step] = c + e, t[3 * step] = c - e;
    } else {
        vec a = y[0] + A2 * y[2], b = A1 * y[1] + A3 * y[3], c = y[0] + 4 * A2 * y[2], e = 2 * A1 * y[1] + 8 * A3 * y[3];
        t[0] = y[0], t[step] = a + b, t[2 * step] = a - b, t[3 * step] = c + e, t[4 * step] = c - e;
    }
    t[(m + 1) * step] = y[m - 1];
}
ALWAYS filter_map_back(const vec *t, vec *g, int step, int m) {
    if (m == 2) {
        vec a = (t[1] + t[2]) * 0.5f;
        g[0] = t[0] + a, g[step] = (t[1] - t[2]) * 0.5f, g[2 * step] = a + t[3];
    } else if (m == 3) {
        vec a = t[0] + t[1], b = t[0] - t[1], c = t[2] + t[3], e = t[2] - t[3];
        g[0] = (1.0f / 6) * c - 0.5f * a, g[step] = 0.25f * (e - b), g[2 * step] = 0.375f * c - 0.125f * a + t[4];
    } else {
        vec a = t[1] + t[2], b = t[2] - t[1], c = t[3] + t[4], e = t[3] - t[4];
        g[0] = t[0] * (1 / (4 * A4)) - a * (1 / (6 * A4)) + c * (1 / (24 * A4));
        g[step] = b * (1 / (6 * A3)) + e * (1 / (12 * A3)), g[2 * step] = (c - a) * (1 / (6 * A2)) + t[5];
    }
}

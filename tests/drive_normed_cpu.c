/* Calls the C of a norm and what stands behind it on maps of many shapes in buffers of just their size, for a sanitizer to watch, and prints what comes of them. */

#include "../nets/normed_cpu.c"

#include "drive.h"

int main(void) {
    int shapes[][4] = {{3, 16, 8, 8}, {37, 32, 5, 7}, {2, 64, 4, 6}, {33, 48, 3, 2}, {1, 112, 2, 2}, {4, 80, 1, 1}};
    for (unsigned k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int way = 0; way < 24; way++) { /* alone, pooled, with a shortcut, by statistics that are given; of floats and of bf16; by each activation */
            int N = shapes[k][0], C = shapes[k][1], H = shapes[k][2], W = shapes[k][3], pools = way % 4 == 1, half = way / 4 % 2, act = way / 8;
            if (pools && H < 2) continue;
            long whole = N * (long)C * H * W, behind = pools ? N * (long)C * (H / 2) * (W / 2) : whole;
            void *maps[] = {map_of(whole, half), map_of(whole, half), map_of(behind, half), map_of(behind, half), map_of(whole, half)};
            float *gain = filled(C), *bias = filled(C), *stats = filled(2 * C), *of_gain = filled(C), *of_bias = filled(C);
            unsigned char *place = buffer(behind);
            for (int c = 0; c < C; c++) stats[C + c] = fabsf(stats[C + c]);
            if (norm_forward(maps[0], gain, bias, way % 4 == 2 ? maps[1] : NULL, pools ? place : NULL, maps[3], stats, 1e-5f, way % 4 < 3, pools, half, act, N, C, H, W, 1)) return 1;
            told_map(maps[3], behind, half), told(stats, 2 * C);
            if (norm_backward(maps[0], maps[2], pools ? place : NULL, gain, bias, stats, maps[4], of_gain, of_bias, 1e-5f, half, act, N, C, H, W, 1)) return 1;
            told_map(maps[4], whole, half), told(of_gain, C), told(of_bias, C);
            for (int i = 0; i < 5; i++) freed(maps[i]);
            float *others[] = {gain, bias, stats, of_gain, of_bias};
            for (int i = 0; i < 5; i++) freed(others[i]);
            freed(place);
        }
    return 0;
}

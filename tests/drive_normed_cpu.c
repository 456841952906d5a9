/* Calls the C of a norm and what stands behind it on maps of many shapes in buffers of just their size, for a sanitizer to watch, and prints what comes of them. */

#include "../nets/normed_cpu.c"

#include "drive.h"

int main(void) {
    int shapes[][4] = {{3, 16, 8, 8}, {37, 32, 5, 7}, {2, 64, 4, 6}, {33, 48, 3, 2}, {1, 112, 2, 2}, {4, 80, 1, 1}};
    for (unsigned k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int way = 0; way < 4; way++) { /* alone, pooled, with a shortcut, by statistics that are given */
            int N = shapes[k][0], C = shapes[k][1], H = shapes[k][2], W = shapes[k][3], pools = way == 1;
            if (pools && H < 2) continue;
            long whole = N * (long)C * H * W, behind = pools ? N * (long)C * (H / 2) * (W / 2) : whole;
            float *images = filled(whole), *shortcut = filled(whole), *gradient = filled(behind), *out = filled(behind), *back = filled(whole);
            float *gain = filled(C), *bias = filled(C), *stats = filled(2 * C), *of_gain = filled(C), *of_bias = filled(C);
            unsigned char *place = buffer(behind);
            for (int c = 0; c < C; c++) stats[C + c] = fabsf(stats[C + c]);
            if (norm_forward(images, gain, bias, way == 2 ? shortcut : NULL, pools ? place : NULL, out, stats, 1e-5f, way < 3, pools, N, C, H, W, 1)) return 1;
            told(out, behind), told(stats, 2 * C);
            if (norm_backward(images, gradient, pools ? place : NULL, gain, bias, stats, back, of_gain, of_bias, 1e-5f, N, C, H, W, 1)) return 1;
            told(back, whole), told(of_gain, C), told(of_bias, C);
            float *all_of[] = {images, shortcut, gradient, out, back, gain, bias, stats, of_gain, of_bias};
            for (int i = 0; i < 10; i++) freed(all_of[i]);
            freed(place);
        }
    return 0;
}

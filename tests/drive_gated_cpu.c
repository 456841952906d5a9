/* Calls the C of a tiny net's block on maps of many shapes in buffers of just their size, for a sanitizer to watch, and prints what comes of them. */

#include "../nets/gated_cpu.c"

#include "drive.h"

int main(void) {
    int shapes[][4] = {{3, 16, 32, 32}, {37, 40, 8, 8}, {2, 24, 7, 5}, {1, 8, 1, 1}, {9, 48, 4, 6}, {1, 64, 20, 20}, {2, 8, 5, 8}, {5, 16, 4, 16}, {3, 8, 3, 64}, {1, 24, 32, 8}, {3, 8, 12, 8}, {9, 8, 8, 4}, {5, 16, 8, 2}};
    for (unsigned k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int last = 0; last < 8; last++) {
            int half = last >> 2; /* filters are pairs, then */
            int N = shapes[k][0], C = shapes[k][1], H = shapes[k][2], W = shapes[k][3];
            long sizes[] = {N * (long)C * H * W, N * (long)C * H * W, N * (long)C * H * W, 9 * C, 2 * C * C, 2 * C, C * C, 2 * C * C, C * C, 9 * C, 2 * C * C, 2 * C, C * C};
            limit = half ? 1e-3 : 1e-5;
            float *b[13];
            for (int i = 0; i < 13; i++) b[i] = map_of(sizes[i], half && (i == 4 || 5 < i && i < 9));
            if (block_forward(b[0], last & 1, b[2], b[3], b[4], b[5], b[6], 1e-5f, N, C, H, W, half)) return 1;
            told(b[2], sizes[2]);
            if (block_backward(b[0], last & 1, b[1], last >> 1 & 1, b[2], b[3], b[4], b[5], b[7], b[8], b[9], b[10], b[11], b[12], 1e-5f, N, C, H, W, half)) return 1;
            told(b[2], sizes[2]);
            for (int i = 9; i < 13; i++) told(b[i], sizes[i]);
            for (int i = 0; i < 13; i++) freed(b[i]);
        }
    return 0;
}

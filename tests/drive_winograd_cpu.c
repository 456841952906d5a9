/* Calls the C of 3x3 convolutions on maps of many shapes in buffers of just their size, for a sanitizer to watch, and prints what comes of them. */

#include "../nets/winograd_cpu.c"

#include "drive.h"

int main(void) {
    int shapes[][5] = {{3, 16, 32, 8, 8}, {37, 32, 16, 5, 7}, {2, 48, 64, 2, 9}, {33, 16, 48, 3, 3}, {1, 80, 112, 2, 2}, {4, 16, 16, 13, 4}};
    for (unsigned k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int m = 2; m < 5; m++) {
            int N = shapes[k][0], I = shapes[k][1], O = shapes[k][2], H = shapes[k][3], W = shapes[k][4], numbers[] = {I, O, H, W, m};
            long images = (long)N * I * H * W, out = (long)N * O * H * W, places = (m + 2) * (m + 2), sizes[] = {images, out, 9 * I * O, images, out, 9 * I * O};
            float *b[6], *forth = buffer(places * filters_pitch(I, O) * sizeof(float)), *round = buffer(places * filters_pitch(O, I) * sizeof(float));
            for (int i = 0; i < 6; i++) b[i] = filled(sizes[i]);
            filters_work((float *[]){b[2], forth}, (int[]){I, O, m}, I), filters_work((float *[]){b[2], round}, (int[]){O, I, m}, O);
            if (forward_work((float *[]){b[0], b[4], forth}, numbers, N) || backward_work((float *[]){b[0], b[1], b[3], b[5], round}, numbers, N)) return 1;
            for (int i = 3; i < 6; i += 2) { /* each gradient by itself is the same */
                float *alone = filled(sizes[i]);
                if (backward_work((float *[]){b[0], b[1], i == 3 ? alone : NULL, i == 5 ? alone : NULL, i == 3 ? round : NULL}, numbers, N)) return 1;
                if (memcmp(alone, b[i], sizes[i] * sizeof(float))) return fprintf(stderr, "winograd_cpu: a gradient by itself is another\n"), 1;
                freed(alone);
            }
            for (int i = 3; i < 6; i++) told(b[i], sizes[i]);
            for (int i = 0; i < 6; i++) freed(b[i]);
            freed(forth), freed(round);
        }
    return 0;
}

/* Calls the C of the convolution between a tiny net's stages on maps of many shapes in buffers of just their size, for a sanitizer to watch, and prints what comes of them. */

#include "../nets/grouped_cpu.c"

#include "drive.h"

int main(void) {
    int shapes[][6] = {{3, 16, 24, 8, 32, 32}, {2, 24, 40, 8, 16, 16}, {1, 8, 8, 8, 2, 2}, {2, 8, 16, 8, 6, 10}, {5, 48, 64, 16, 8, 4}, {1, 8, 72, 8, 2, 66}};
    for (unsigned k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        int N = shapes[k][0], I = shapes[k][1], O = shapes[k][2], G = shapes[k][3], H = shapes[k][4], W = shapes[k][5];
        long images = (long)N * I * H * W, out = (long)N * O * (H / 2) * (W / 2), weight = (long)O * I / G * 16, sizes[] = {images, weight, out, out, images, weight};
        float *b[6];
        for (int i = 0; i < 6; i++) b[i] = filled(sizes[i]);
        if (grouped_forward(b[0], b[1], b[2], N, I, O, G, H, W)) return 1;
        if (grouped_backward(b[0], b[1], b[3], b[4], b[5], N, I, O, G, H, W)) return 1;
        told(b[2], sizes[2]), told(b[4], sizes[4]), told(b[5], sizes[5]);
        for (int i = 0; i < 6; i++) freed(b[i]);
    }
    return 0;
}

/* Calls the C of 3x3 convolutions on maps of many shapes in buffers of just their size, for a sanitizer to watch, and prints what comes of them. */

#include "../nets/winograd_cpu.c"

#include "drive.h"

int main(void) {
    int shapes[][5] = {{3, 16, 32, 8, 8}, {37, 32, 16, 5, 7}, {2, 48, 64, 2, 9}, {33, 16, 48, 3, 3}, {1, 80, 112, 2, 2}, {4, 16, 16, 13, 4}};
    for (unsigned k = 0; k < 6 * sizeof shapes / sizeof *shapes; k++) { /* by squares of each side, of floats and of bf16 */
        int *shape = shapes[k / 6], m = 2 + k % 3, half = k / 3 % 2, N = shape[0], I = shape[1], O = shape[2], H = shape[3], W = shape[4], numbers[] = {I, O, H, W, m, half};
        long images = (long)N * I * H * W, out = (long)N * O * H * W, places = (m + 2) * (m + 2);
        float *forth = buffer(places * filters_pitch(I, O, half) * sizeof(float)), *round = buffer(places * filters_pitch(O, I, half) * sizeof(float));
        float *weight = filled(9 * I * O), *of_weight = filled(9 * I * O), *alone = filled(9 * I * O);
        void *seen = map_of(images, half), *made = map_of(out, half), *gradient = map_of(out, half), *of_images = map_of(images, half), *by_itself = map_of(images, half);
        filters_work((float *[]){weight, forth}, (int[]){I, O, m, half}, I), filters_work((float *[]){weight, round}, (int[]){O, I, m, half}, O);
        if (forward_work((float *[]){seen, made, forth}, numbers, N) || backward_work((float *[]){seen, gradient, of_images, of_weight, round}, numbers, N)) return 1;
        if (backward_work((float *[]){seen, gradient, by_itself, NULL, round}, numbers, N) || backward_work((float *[]){seen, gradient, NULL, alone, NULL}, numbers, N)) return 1;
        if (memcmp(by_itself, of_images, images * (half ? 2 : 4)) || memcmp(alone, of_weight, 9 * I * O * sizeof(float)))
            return fprintf(stderr, "winograd_cpu: a gradient by itself is another\n"), 1;
        told_map(made, out, half), told_map(of_images, images, half), told(of_weight, 9 * I * O);
        freed(forth), freed(round), freed(weight), freed(of_weight), freed(alone), freed(seen), freed(made), freed(gradient), freed(of_images), freed(by_itself);
    }
    return 0;
}

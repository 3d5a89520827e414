/* PNG by libpng, what is transparent on white. Built where CMake finds the library. */
#include <stdlib.h>
#include <string.h>

#include <png.h>

#include "picture_file.h"

const char *picture_decode_png(const uint8_t *data, size_t size, picture *result) {
    png_image image;
    memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    if (!png_image_begin_read_from_memory(&image, data, size)) {
        return "it is damaged";
    }
    image.format = PNG_FORMAT_RGBA;
    const char *problem = picture_allocate(image.width, image.height, result);
    uint8_t *rgba = problem == NULL ? malloc(result->width * result->height * 4) : NULL;
    if (rgba == NULL) {
        png_image_free(&image);
        return problem != NULL ? problem : "out of memory";
    }
    if (!png_image_finish_read(&image, NULL, rgba, 0, NULL)) {
        problem = "it is damaged or truncated";
    }
    for (size_t i = 0; problem == NULL && i < result->width * result->height; i++) {
        for (size_t c = 0; c < 3; c++) {
            unsigned alpha = rgba[4 * i + 3];
            unsigned value = rgba[4 * i + c] * alpha + 255 * (255 - alpha);
            result->rgb[3 * i + c] = (uint8_t)((value + 127) / 255);
        }
    }
    free(rgba);
    png_image_free(&image);
    return problem;
}

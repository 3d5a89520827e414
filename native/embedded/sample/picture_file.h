/* Picture files as rows of RGB bytes: PPM, PGM and BMP always; JPEG and PNG where built with them. */
#ifndef PICTURE_FILE_H
#define PICTURE_FILE_H

#include <stddef.h>
#include <stdint.h>

typedef struct picture {
    uint8_t *rgb; /* height rows of width pixels, three bytes each; to be freed */
    size_t width;
    size_t height;
} picture;

#define PICTURE_MAX_PIXELS ((size_t)1 << 27) /* 400 MB of RGB; more is a damaged file, or an attack */

/* Read `path`. Returns NULL, or what is wrong with the file in a few words. */
const char *picture_read(const char *path, picture *result);

/* Make room for the pixels; returns what is wrong with the size, or NULL. */
const char *picture_allocate(size_t width, size_t height, picture *result);

/* The decoders, each for a whole file in memory. */
const char *picture_decode_jpeg(const uint8_t *data, size_t size, picture *result);
const char *picture_decode_png(const uint8_t *data, size_t size, picture *result);

#endif

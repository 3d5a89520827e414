/* Damaged input for the two readers that see other people's files. */
#include "checks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "picture_file.h"
#include "tmn_internal.h"

enum { END_BYTES = 4 + 64 + 1 };

uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Change, insert, remove or repeat a few bytes; the buffer has room for 64 more. */
static size_t damage(char *data, size_t size, uint64_t *state) {
    static const char LIKELY[] = " \n0x-9\\";
    size_t changes = 1 + next_random(state) % 4;
    for (size_t i = 0; i < changes && size > 8; i++) {
        size_t at = next_random(state) % size;
        size_t left = size - at;
        size_t count = 1 + next_random(state) % (left < 8 ? left : 8);
        char byte = next_random(state) % 2 ? (char)next_random(state)
                                           : LIKELY[next_random(state) % (sizeof LIKELY - 1)];
        switch (next_random(state) % 4) {
            case 0:
                data[at] = byte;
                break;
            case 1:
                memmove(data + at, data + at + count, left - count);
                size -= count;
                break;
            case 2:
                memmove(data + at + count, data + at, left);
                size += count;
                break;
            default:
                size = next_random(state) % 16 == 0 ? at : size;
                data[at] = byte;
                break;
        }
    }
    return size;
}

static int write_file(const char *path, const char *data, size_t size) {
    FILE *file = fopen(path, "wb");
    int is_good = file != NULL && fwrite(data, 1, size, file) == size;
    return file != NULL && fclose(file) == 0 && is_good ? 0 : 1;
}

int fuzz_description(const char *model_file, const char *scratch, long rounds) {
    tmn_error error;
    char *original;
    size_t size;
    if (tmn_read_file(model_file, 1 << 20, &original, &size, &error) != TMN_OK) {
        return 1;
    }
    size -= END_BYTES;
    char *data = malloc(size + 64 + END_BYTES);
    uint64_t state = 1;
    long accepted = 0;
    long refused = 0;
    for (long round = 0; data != NULL && round < rounds; round++) {
        memcpy(data, original, size);
        size_t damaged = damage(data, size, &state);
        /* With a good last line, or nothing of it would be read. */
        memcpy(data + damaged, "end ", 4);
        char hex[TMN_SHA256_HEX];
        tmn_sha256_hex(data, damaged, hex);
        memcpy(data + damaged + 4, hex, 64);
        data[damaged + END_BYTES - 1] = '\n';
        tmn_model_file file;
        if (write_file(scratch, data, damaged + END_BYTES) != 0) {
            return 1;
        }
        if (tmn_read_model_file(scratch, &file, &error) == TMN_OK) {
            /* Touch all of it. */
            size_t length = strlen(file.description.model);
            for (size_t i = 0; i < file.description.class_count; i++) {
                length += strlen(file.description.class_names[i]);
            }
            for (size_t i = 0; i < file.description.input_count; i++) {
                length += strlen(file.description.inputs[i].name) + file.description.inputs[i].rank;
            }
            accepted += length < SIZE_MAX;
            tmn_free_model_file(&file);
        } else {
            refused += error.status == TMN_ERROR_DAMAGED && error.text[0] != '\0';
        }
    }
    free(data);
    free(original);
    printf("accepted %ld, refused %ld\n", accepted, refused);
    return accepted + refused == rounds ? 0 : 1;
}

int fuzz_picture(const char *picture_path, const char *scratch, long rounds) {
    tmn_error error;
    char *original;
    size_t size;
    if (tmn_read_file(picture_path, 1 << 20, &original, &size, &error) != TMN_OK) {
        return 1;
    }
    char *data = malloc(size + 64);
    uint64_t state = 2;
    long accepted = 0;
    long refused = 0;
    for (long round = 0; data != NULL && round < rounds; round++) {
        memcpy(data, original, size);
        size_t damaged = damage(data, size, &state);
        /* Most of the interesting bytes are at the front. */
        data[next_random(&state) % 64] = (char)next_random(&state);
        if (write_file(scratch, data, damaged) != 0) {
            return 1;
        }
        picture found;
        const char *problem = picture_read(scratch, &found);
        if (problem == NULL) {
            size_t sum = 0;
            for (size_t i = 0; i < found.width * found.height * 3; i++) {
                sum += found.rgb[i];
            }
            accepted += sum < SIZE_MAX;
            free(found.rgb);
        } else {
            refused += problem[0] != '\0';
        }
    }
    free(data);
    free(original);
    printf("accepted %ld, refused %ld\n", accepted, refused);
    return accepted + refused == rounds ? 0 : 1;
}

/*
 * What a product may do with the C interface, right and wrong; driven by tests/test_embedded.py.
 *
 *     checks errors MODEL           what each wrong call says, one a line: name, status, message
 *     checks threads MODEL          models in several threads at once
 *     checks moved MODEL            a model opened, used and closed by different threads
 *     checks twins MODEL            two models of one library, closed in either order
 *     checks growth MODEL RUNS      resident memory after a tenth of the runs, and after all
 *     checks reopen MODEL TIMES     resident memory after a fifth of the openings, and after all
 *     checks prepared MODEL PICTURE FILE   write the input that becomes of a picture
 *     checks description MODEL.TXT SCRATCH ROUNDS
 *     checks picture FILE SCRATCH ROUNDS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checks.h"
#include "picture_file.h"
#include "tvm_mobilenet.h"

enum { THREADS = 4, RUNS = 25 };

static void require(bool condition, const char *what, const tmn_model *model) {
    if (!condition) {
        fprintf(stderr, "checks: %s: %s\n", what, tmn_last_error(model));
        exit(1);
    }
}

static tmn_model *open_model(const char *folder, int threads) {
    tmn_options options = {.threads = threads};
    tmn_model *model;
    require(tmn_open(folder, &options, &model) == TMN_OK, "tmn_open", NULL);
    require(tmn_threads(model) == threads, "tmn_threads", model);
    return model;
}

/* Fill the first input with numbers that `seed` gives. */
static void fill(tmn_model *model, uint64_t seed) {
    void *data;
    require(tmn_input_data(model, 0, &data) == TMN_OK, "tmn_input_data", model);
    const tmn_tensor_info *input = &tmn_describe(model)->inputs[0];
    uint64_t state = seed;
    for (size_t i = 0; i < input->size_bytes / sizeof(float); i++) {
        ((float *)data)[i] = (float)(next_random(&state) % 2001) / 1000.0f - 1.0f;
    }
}

static float *run(tmn_model *model) {
    const tmn_tensor_info *output = &tmn_describe(model)->outputs[0];
    float *values = malloc(output->size_bytes);
    require(values != NULL && tmn_run(model) == TMN_OK, "tmn_run", model);
    require(tmn_get_output(model, 0, values, output->size_bytes) == TMN_OK, "output", model);
    return values;
}

static bool is_equal(const tmn_model *model, const float *left, const float *right) {
    return memcmp(left, right, tmn_describe(model)->outputs[0].size_bytes) == 0;
}

static void say(const char *name, tmn_status status, const char *message) {
    printf("%s\t%d\t%s\t%s\n", name, (int)status, tmn_strerror(status), message);
}

static void say_input(tmn_model *model, const char *name, tmn_tensor tensor) {
    say(name, tmn_set_input(model, 0, &tensor), tmn_last_error(model));
}

static int errors(const char *folder) {
    tmn_model *model;
    tmn_options many = {.threads = 100000};
    say("threads", tmn_open(folder, &many, &model), tmn_last_error(NULL));
    int cpus[] = {0, 0};
    tmn_options twice = {.cpus = cpus, .cpu_count = 2};
    say("cpus", tmn_open(folder, &twice, &model), tmn_last_error(NULL));
    require(model == NULL, "a model was left behind", NULL);
    say("no-place", tmn_open(folder, NULL, NULL), tmn_last_error(NULL));
    say("no-model", tmn_run(NULL), tmn_last_error(NULL));
    require(tmn_describe(NULL) == NULL, "a description of nothing", NULL);

    model = open_model(folder, 1);
    require(tmn_last_error(model)[0] == '\0', "a message before any failure", model);
    const tmn_description *about = tmn_describe(model);
    const tmn_tensor_info *input = &about->inputs[0];
    const void *output;
    say("not-set", tmn_run(model), tmn_last_error(model));
    say("not-run", tmn_output_data(model, 0, &output), tmn_last_error(model));

    void *data = calloc(1, input->size_bytes);
    int64_t shape[TMN_MAX_RANK];
    memcpy(shape, input->shape, sizeof shape);
    tmn_tensor good = {input->dtype, input->rank, shape, data, input->size_bytes};
    tmn_tensor wrong = good;
    wrong.dtype = TMN_UINT8;
    say_input(model, "dtype", wrong);
    wrong = good;
    wrong.rank--;
    say_input(model, "rank", wrong);
    wrong = good;
    wrong.size_bytes--;
    say_input(model, "size", wrong);
    wrong = good;
    wrong.data = NULL;
    say_input(model, "null", wrong);
    shape[1]++;
    say_input(model, "shape", good);
    shape[1]--;
    say("index", tmn_set_input(model, 7, &good), tmn_last_error(model));
    say("still-not-set", tmn_run(model), tmn_last_error(model));

    require(tmn_set_input(model, 0, &good) == TMN_OK, "tmn_set_input", model);
    require(tmn_run(model) == TMN_OK, "tmn_run", model);
    float value;
    say("room", tmn_get_output(model, 0, &value, sizeof value), tmn_last_error(model));
    say("output", tmn_output_data(model, 9, &output), tmn_last_error(model));
    uint8_t pixel[3] = {0, 0, 0};
    say("empty", tmn_set_picture(model, 0, pixel, 0, 1, 0), tmn_last_error(model));
    say("slot", tmn_set_picture(model, 5, pixel, 1, 1, 0), tmn_last_error(model));
    say("narrow", tmn_set_picture(model, 0, pixel, 1, 1u << 20, 0), tmn_last_error(model));
    say("stride", tmn_set_picture(model, 0, pixel, 1, 1, 2), tmn_last_error(model));
    free(data);
    tmn_close(model);
    tmn_close(NULL);
    return 0;
}

typedef struct job {
    const char *folder;
    int threads;
    uint64_t seed;
    const float *expected;
    tmn_model *model;
} job;

static void *compute(void *argument) {
    job *work = argument;
    tmn_model *model = open_model(work->folder, work->threads);
    fill(model, work->seed);
    for (int i = 0; i < RUNS; i++) {
        float *values = run(model);
        require(is_equal(model, values, work->expected), "another result in a thread", model);
        free(values);
    }
    /* The same model, another input, and back: nothing is left over from before. */
    fill(model, work->seed + 1000);
    free(run(model));
    fill(model, work->seed);
    float *values = run(model);
    require(is_equal(model, values, work->expected), "another result after another input", model);
    free(values);
    tmn_close(model);
    return NULL;
}

static int threads(const char *folder) {
    cpu_set_t before;
    cpu_set_t after;
    CPU_ZERO(&before);
    CPU_ZERO(&after);
    sched_getaffinity(0, sizeof before, &before);
    int most = CPU_COUNT(&before) > 1 ? 2 : 1;
    job jobs[THREADS];
    pthread_t handles[THREADS];
    float *expected[THREADS];
    tmn_model *model = open_model(folder, 1);
    for (int i = 0; i < THREADS; i++) {
        fill(model, (uint64_t)i + 1);
        expected[i] = run(model);
        jobs[i] = (job){folder, i % 2 ? most : 1, (uint64_t)i + 1, expected[i], NULL};
    }
    require(!is_equal(model, expected[0], expected[1]), "inputs make no difference", model);
    for (int i = 0; i < THREADS; i++) {
        require(pthread_create(&handles[i], NULL, compute, &jobs[i]) == 0, "a thread", NULL);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(handles[i], NULL);
        free(expected[i]);
    }
    tmn_close(model);
    sched_getaffinity(0, sizeof after, &after);
    require(CPU_EQUAL(&before, &after), "the caller was pinned", NULL);
    puts("good");
    return 0;
}

static void *open_here(void *argument) {
    job *work = argument;
    work->model = open_model(work->folder, work->threads);
    fill(work->model, work->seed);
    return NULL;
}

static void *run_here(void *argument) {
    return run(((job *)argument)->model);
}

static void *close_here(void *argument) {
    tmn_close(((job *)argument)->model);
    return NULL;
}

static int moved(const char *folder) {
    job work = {folder, 1, 7, NULL, NULL};
    pthread_t handle;
    void *values[2];
    require(pthread_create(&handle, NULL, open_here, &work) == 0, "a thread", NULL);
    pthread_join(handle, NULL);
    for (int i = 0; i < 2; i++) {
        require(pthread_create(&handle, NULL, run_here, &work) == 0, "a thread", NULL);
        pthread_join(handle, &values[i]);
    }
    require(is_equal(work.model, values[0], values[1]), "another result in another thread", NULL);
    require(pthread_create(&handle, NULL, close_here, &work) == 0, "a thread", NULL);
    pthread_join(handle, NULL);
    free(values[0]);
    free(values[1]);
    puts("good");
    return 0;
}

static int twins(const char *folder) {
    for (int first = 0; first < 2; first++) {
        tmn_model *models[2] = {open_model(folder, 1), open_model(folder, 1)};
        fill(models[0], 3);
        fill(models[1], 3);
        float *left = run(models[0]);
        float *right = run(models[1]);
        require(is_equal(models[0], left, right), "twins disagree", NULL);
        tmn_close(models[first]);
        free(right);
        right = run(models[1 - first]);
        require(is_equal(models[1 - first], left, right), "the other twin suffered", NULL);
        tmn_close(models[1 - first]);
        free(left);
        free(right);
    }
    puts("good");
    return 0;
}

static long resident_kib(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    long kib = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        sscanf(line, "VmRSS: %ld", &kib);
    }
    if (file != NULL) {
        fclose(file);
    }
    return kib;
}

static int growth(const char *folder, long runs) {
    tmn_model *model = open_model(folder, 1);
    long early = 0;
    for (long i = 1; i <= runs; i++) {
        fill(model, (uint64_t)i);
        free(run(model));
        early = i == runs / 10 ? resident_kib() : early;
    }
    printf("%ld %ld\n", early, resident_kib());
    tmn_close(model);
    return 0;
}

static int reopen(const char *folder, long times) {
    long early = 0;
    for (long i = 1; i <= times; i++) {
        tmn_model *model = open_model(folder, 1);
        fill(model, 1);
        free(run(model));
        tmn_close(model);
        early = i == times / 5 ? resident_kib() : early;
    }
    printf("%ld %ld\n", early, resident_kib());
    return 0;
}

static int prepared(const char *folder, const char *path, const char *result) {
    picture found;
    const char *problem = picture_read(path, &found);
    if (problem != NULL) {
        fprintf(stderr, "checks: %s: %s\n", path, problem);
        return 1;
    }
    /* Rows with gaps between them, as cameras give them. */
    size_t stride = found.width * 3 + 13;
    uint8_t *rows = malloc(stride * found.height);
    require(rows != NULL, "memory", NULL);
    for (size_t y = 0; y < found.height; y++) {
        memcpy(rows + y * stride, found.rgb + y * found.width * 3, found.width * 3);
    }
    tmn_model *model = open_model(folder, 1);
    void *data;
    require(tmn_set_picture(model, 0, rows, found.width, found.height, stride) == TMN_OK,
            "tmn_set_picture", model);
    require(tmn_input_data(model, 0, &data) == TMN_OK, "tmn_input_data", model);
    FILE *file = fopen(result, "wb");
    size_t size = tmn_describe(model)->inputs[0].size_bytes;
    require(file != NULL && fwrite(data, 1, size, file) == size, "writing", NULL);
    fclose(file);
    free(rows);
    free(found.rgb);
    tmn_close(model);
    return 0;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*check)(const char *folder);
    } CHECKS[] = {{"errors", errors}, {"threads", threads}, {"moved", moved}, {"twins", twins}};
    const char *name = argc > 2 ? argv[1] : "";
    for (size_t i = 0; i < sizeof CHECKS / sizeof CHECKS[0]; i++) {
        if (strcmp(name, CHECKS[i].name) == 0) {
            return CHECKS[i].check(argv[2]);
        }
    }
    if (strcmp(name, "growth") == 0 && argc == 4) {
        return growth(argv[2], atol(argv[3]));
    }
    if (strcmp(name, "reopen") == 0 && argc == 4) {
        return reopen(argv[2], atol(argv[3]));
    }
    if (strcmp(name, "prepared") == 0 && argc == 5) {
        return prepared(argv[2], argv[3], argv[4]);
    }
    if (strcmp(name, "description") == 0 && argc == 5) {
        return fuzz_description(argv[2], argv[3], atol(argv[4]));
    }
    if (strcmp(name, "picture") == 0 && argc == 5) {
        return fuzz_picture(argv[2], argv[3], atol(argv[4]));
    }
    fputs("checks: look at the head of checks.c\n", stderr);
    return 2;
}

/*
 * A thread of its own for each model.
 *
 * TVM keeps one pool of workers for each thread that computes, sizes it when it is first used, by
 * default at half of an x86 machine's processors, and pins the thread that uses it. On a thread of
 * the model's own all of that stays between the model and TVM, and ends when the thread does.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* for CPU sets */
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tmn_internal.h"

struct tmn_thread {
    pthread_t handle;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    void (*function)(void *); /* what is to be run; NULL while there is nothing */
    void *argument;
    bool is_stopping;
    int count;
    int cpus[CPU_SETSIZE];
    cpu_set_t home; /* where the thread itself may run, once TVM's workers have their places */
};

/* One processor that this process may use. */
typedef struct cpu {
    int number;
    long speed;   /* capacity or top clock, in whatever unit; 0 where the system hides it */
    bool is_twin; /* not the first hardware thread of its core */
} cpu;

static bool read_line(int number, const char *name, char *line, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/%s", number, name);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return false;
    }
    bool found = fgets(line, (int)size, file) != NULL;
    fclose(file);
    return found;
}

static long cpu_speed(int number) {
    char line[64];
    if (read_line(number, "cpu_capacity", line, sizeof line) ||
        read_line(number, "cpufreq/cpuinfo_max_freq", line, sizeof line)) {
        return strtol(line, NULL, 10);
    }
    return 0;
}

/* Whether a processor with a lower number, which we may use too, is on the same core. */
static bool is_twin(int number, const cpu_set_t *allowed) {
    char line[256];
    if (!read_line(number, "topology/thread_siblings_list", line, sizeof line)) {
        return false;
    }
    /* The list begins with the lowest, "0,4" or "0-1". */
    long first = strtol(line, NULL, 10);
    return first >= 0 && first < number && CPU_ISSET((size_t)first, allowed);
}

static int by_rank(const void *left, const void *right) {
    const cpu *a = left;
    const cpu *b = right;
    if (a->is_twin != b->is_twin) {
        return a->is_twin ? 1 : -1;
    }
    if (a->speed != b->speed) {
        return a->speed > b->speed ? -1 : 1;
    }
    return a->number - b->number;
}

/* How many processors the control group grants, rounded up; INT32_MAX where it sets no limit. */
static int cpu_quota(void) {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (file == NULL) {
        return INT32_MAX;
    }
    long quota = 0;
    long period = 0;
    int found = fscanf(file, "%ld %ld", &quota, &period); /* "max 100000" does not match */
    fclose(file);
    if (found != 2 || quota <= 0 || period <= 0 || quota / period >= CPU_SETSIZE) {
        return INT32_MAX;
    }
    return (int)((quota + period - 1) / period);
}

/* List this process's processors, the ones to prefer first; *fast counts the fast cores. */
static int ranked_cpus(const cpu_set_t *allowed, cpu ranked[CPU_SETSIZE], int *fast) {
    int count = 0;
    for (int number = 0; number < CPU_SETSIZE; number++) {
        if (CPU_ISSET((size_t)number, allowed)) {
            ranked[count++] = (cpu){number, cpu_speed(number), is_twin(number, allowed)};
        }
    }
    qsort(ranked, (size_t)count, sizeof ranked[0], by_rank);
    for (*fast = 0; *fast < count && !ranked[*fast].is_twin; (*fast)++) {
        if (ranked[*fast].speed < ranked[0].speed) {
            break;
        }
    }
    return count;
}

static tmn_status take_given(const tmn_options *options, const cpu_set_t *allowed,
                             tmn_thread *thread, tmn_error *error) {
    if (options->cpu_count == 0 || options->cpu_count > CPU_SETSIZE ||
        (options->threads != 0 && (size_t)options->threads != options->cpu_count)) {
        return tmn_fail(error, TMN_ERROR_ARGUMENT,
                        "cpus: %zu processors for %d threads; give one for each, or leave threads "
                        "at 0",
                        options->cpu_count, options->threads);
    }
    cpu_set_t given;
    CPU_ZERO(&given);
    for (size_t i = 0; i < options->cpu_count; i++) {
        int number = options->cpus[i];
        if (number < 0 || number >= CPU_SETSIZE || !CPU_ISSET((size_t)number, allowed) ||
            CPU_ISSET((size_t)number, &given)) {
            return tmn_fail(error, TMN_ERROR_ARGUMENT,
                            "cpus: processor %d is named twice, or not one that this process may "
                            "use; look at /proc/self/status, Cpus_allowed_list",
                            number);
        }
        CPU_SET((size_t)number, &given);
        thread->cpus[i] = number;
    }
    thread->count = (int)options->cpu_count;
    CPU_SET((size_t)thread->cpus[0], &thread->home);
    return TMN_OK;
}

static tmn_status choose_cpus(const tmn_options *options, tmn_thread *thread, tmn_error *error) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return tmn_fail(error, TMN_ERROR_RUNTIME,
                        "the system does not say which processors may be used");
    }
    if (options->cpus != NULL) {
        return take_given(options, &allowed, thread, error);
    }
    cpu *ranked = malloc(CPU_SETSIZE * sizeof *ranked);
    if (ranked == NULL) {
        return tmn_fail_memory(error);
    }
    int fast;
    int available = ranked_cpus(&allowed, ranked, &fast);
    int quota = cpu_quota();
    thread->count = options->threads != 0 ? options->threads : fast < quota ? fast : quota;
    tmn_status status = TMN_OK;
    if (thread->count < 1 || thread->count > available) {
        status = tmn_fail(error, TMN_ERROR_ARGUMENT,
                          "threads %d: this process may use %d processors; give 1 to %d, or 0 for "
                          "one on each fast core",
                          options->threads, available, available);
    }
    for (int i = 0; status == TMN_OK && i < thread->count; i++) {
        thread->cpus[i] = ranked[i].number;
    }
    /* Beside workers that spin while they wait, the thread keeps to its own processor. Alone it is
       better off free to move among the fast ones. */
    for (int i = 0; i < (thread->count == 1 ? fast : 1); i++) {
        CPU_SET((size_t)ranked[i].number, &thread->home);
    }
    free(ranked);
    return status;
}

static void *work(void *argument) {
    tmn_thread *thread = argument;
    pthread_mutex_lock(&thread->mutex);
    for (;;) {
        while (thread->function == NULL && !thread->is_stopping) {
            pthread_cond_wait(&thread->changed, &thread->mutex);
        }
        if (thread->function == NULL) {
            break;
        }
        void (*function)(void *) = thread->function;
        pthread_mutex_unlock(&thread->mutex);
        function(thread->argument);
        pthread_mutex_lock(&thread->mutex);
        thread->function = NULL;
        pthread_cond_broadcast(&thread->changed);
    }
    pthread_mutex_unlock(&thread->mutex);
    return NULL;
}

static int create(tmn_thread *thread) {
    /* The program's signals are for the program's threads; TVM's workers inherit the mask. */
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread->handle, NULL, work, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

tmn_status tmn_thread_start(const tmn_options *options, tmn_thread **result, tmn_error *error) {
    tmn_thread *thread = calloc(1, sizeof *thread);
    if (thread == NULL) {
        return tmn_fail_memory(error);
    }
    tmn_status status = choose_cpus(options, thread, error);
    if (status != TMN_OK) {
        free(thread);
        return status;
    }
    pthread_mutex_init(&thread->mutex, NULL);
    pthread_cond_init(&thread->changed, NULL);
    int failed = create(thread);
    if (failed != 0) {
        pthread_cond_destroy(&thread->changed);
        pthread_mutex_destroy(&thread->mutex);
        free(thread);
        return tmn_fail(error, TMN_ERROR_MEMORY, "no thread to compute on: %s", strerror(failed));
    }
    *result = thread;
    return TMN_OK;
}

void tmn_thread_call(tmn_thread *thread, void (*function)(void *), void *argument) {
    pthread_mutex_lock(&thread->mutex);
    thread->argument = argument;
    thread->function = function;
    pthread_cond_broadcast(&thread->changed);
    while (thread->function != NULL) {
        pthread_cond_wait(&thread->changed, &thread->mutex);
    }
    pthread_mutex_unlock(&thread->mutex);
}

const int *tmn_thread_cpus(const tmn_thread *thread, int *count) {
    *count = thread->count;
    return thread->cpus;
}

tmn_status tmn_thread_settle(const tmn_thread *thread, tmn_error *error) {
    if (sched_setaffinity(0, sizeof thread->home, &thread->home) != 0) {
        return tmn_fail(error, TMN_ERROR_RUNTIME,
                        "the system does not let the computing thread run on processor %d",
                        thread->cpus[0]);
    }
    return TMN_OK;
}

void tmn_thread_stop(tmn_thread *thread) {
    pthread_mutex_lock(&thread->mutex);
    thread->is_stopping = true;
    pthread_cond_broadcast(&thread->changed);
    pthread_mutex_unlock(&thread->mutex);
    pthread_join(thread->handle, NULL);
    pthread_cond_destroy(&thread->changed);
    pthread_mutex_destroy(&thread->mutex);
    free(thread);
}

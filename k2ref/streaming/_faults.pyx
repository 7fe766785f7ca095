# cython: language_level=3
"""The last word: what is said when a page of a checkpoint cannot be read.

A memory map has no way to report an error. When the disk fails, or the file was cut, the system
sends SIGBUS to the thread that touched the page, and the process ends without a word. No Python code
can run at that point, so this module is C: it finds whose page it was, writes one sentence, and ends
the process with status 74 (EX_IOERR). A fault that is not on a checkpoint's page is none of ours and
goes to whoever listened before.

Chapter 15.
"""

cdef extern from *:
    """
    #define MOST_MAPS 1024
    #define EXIT_CODE 74
    typedef struct { size_t start, stop; char *path; } Map;
    static Map maps[MOST_MAPS];  /* a free slot has path NULL; a slot is filled path last */

    static int add_map(size_t start, size_t n_bytes, const char *path, size_t n_path) {
        for (int i = 0; i < MOST_MAPS; i++) {
            if (maps[i].path) continue;
            char *copy = (char *)malloc(n_path + 1);
            if (!copy) return 0;
            memcpy(copy, path, n_path + 1);
            maps[i].start = start;
            maps[i].stop = start + n_bytes;
            maps[i].path = copy;
            return 1;
        }
        return 0;
    }

    static void remove_map(size_t start) {
        for (int i = 0; i < MOST_MAPS; i++) {
            if (!maps[i].path || maps[i].start != start) continue;
            char *path = maps[i].path;
            maps[i].path = NULL;
            free(path);
            return;
        }
    }

    #ifdef _WIN32
    static int listen(void) { return 0; }
    #else
    #include <signal.h>
    #include <unistd.h>
    static struct sigaction before;

    static void say(const char *text) {
        size_t n = strlen(text);
        while (n) {
            ssize_t done = write(2, text, n);
            if (done <= 0) return;
            text += done;
            n -= (size_t)done;
        }
    }

    /* Only what is safe in a signal handler: no allocation, no stdio, no Python. */
    static void on_fault(int number, siginfo_t *info, void *context) {
        size_t at = (size_t)info->si_addr;
        (void)number; (void)context;
        for (int i = 0; i < MOST_MAPS; i++) {
            if (!maps[i].path || at < maps[i].start || at >= maps[i].stop) continue;
            say("k2ref: ");
            say(maps[i].path);
            say(": expected a page of weights, found that it cannot be read: the disk failed or the "
                "file was cut while in use; check the disk, or copy the file again\\n");
            _exit(EXIT_CODE);
        }
        sigaction(SIGBUS, &before, NULL);  /* on return the instruction faults again, for them */
    }

    static int listen(void) {
        struct sigaction ours, found;
        if (sigaction(SIGBUS, NULL, &found)) return -1;
        if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == on_fault) return 0;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = on_fault;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&ours.sa_mask);
        before = found;
        return sigaction(SIGBUS, &ours, NULL);
    }
    #endif
    """
    const int EXIT_CODE
    int add_map(size_t start, size_t n_bytes, const char *path, size_t n_path)
    void remove_map(size_t start)
    int listen()

EXIT_STATUS = EXIT_CODE


def watch(size_t address, size_t n_bytes, bytes path):
    """Answer for the map of `n_bytes` bytes at `address`; return whether there was a place for it."""
    return bool(add_map(address, n_bytes, path, len(path)) and listen() == 0)


def forget(size_t address):
    """Stop to answer for the map at `address`."""
    remove_map(address)

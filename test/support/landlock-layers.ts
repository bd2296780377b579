/** Enters as many Landlock domains as a process may be in, with rules for file systems if the first argument is 1, and becomes the program of the other arguments. */
import { ACCESS, enterDomain, landlockVersion } from '../../src/ffi/landlock.js';
import * as c from '../../src/ffi/libc.js';
import { F_SETFD } from '../../src/ffi/constants.js';
import { execve } from '../../src/ffi/namespaces.js';
import { setNoNewPrivileges } from '../../src/ffi/privileges.js';

/** LANDLOCK_MAX_NUM_LAYERS of Linux. */
const LAYERS_MAX = 16;

const [files, ...command] = process.argv.slice(2);
setNoNewPrivileges();
for (let i = 0; i < LAYERS_MAX; i++) enterDomain({ version: landlockVersion(), handled: files === '1' ? ACCESS.MAKE_BLOCK : 0, paths: [], tcp: 'all' });
// Node made these close-on-exec
for (const fd of [0, 1, 2]) c.fcntl(fd, F_SETFD, 0);
execve(command[0], command, process.env);

import assert from 'node:assert/strict';
import { availableParallelism } from 'node:os';
import { describe, test } from 'node:test';
import { version } from '../../src/base/version.js';
import { parseCommandLine, type Options } from '../../src/cli.js';
import { helpText, optionsMarkdown } from '../../src/cli/help.js';
import { splitList } from '../../src/cli/legacy.js';
import type { OptionSpec } from '../../src/cli/option-spec.js';
import { OPTION_ENTRIES } from '../../src/cli/options.js';
import { failureOf, UsageError } from '../../src/lifecycle/errors.js';

const BASE = ['--fd', '3', '--source', '/srv'];
const BUCKET = ['--fd', '3', '--source', 's3://bbb'];
const GCS = ['--fd', '3', '--source', 'gs://bbb'];
/** What an option has an effect beside only. */
const BESIDE: Readonly<Record<string, readonly string[]>> = { 'cache-fill': ['--cache-size=1'] };
/** With a source that the option means something for. */
const baseOf = (spec: OptionSpec): string[] => [
  ...(spec.only === 'bucket' || spec.only === 's3' ? BUCKET : spec.only === 'gcs' ? GCS : BASE), ...(BESIDE[spec.flag] ?? []),
];

function run(args: string[], env: NodeJS.ProcessEnv = {}, pid = 1): Options {
  const command = parseCommandLine(args, env, pid);
  assert.equal(command.action, 'run');
  return (command as { options: Options }).options;
}

function printed(args: string[]): string {
  const command = parseCommandLine(args, {}, 1);
  assert.equal(command.action, 'print');
  return (command as { text: string }).text;
}

/** One sentence: no line break, no stack, and it says what is expected. */
function refused(args: string[], expected: RegExp, env: NodeJS.ProcessEnv = {}, pid = 1): void {
  assert.throws(
    () => parseCommandLine(args, env, pid),
    (error: unknown) => {
      assert.ok(error instanceof UsageError, String(error));
      assert.match(error.message, expected);
      assert.ok(!error.message.includes('\n'), 'one line');
      assert.equal(failureOf(error).exitCode, 2);
      return true;
    },
  );
}

describe('defaults', () => {
  test('a descriptor and a source are enough, and everything else has the documented default', () => {
    assert.deepEqual(run(BASE), {
      source: { kind: 'local', path: '/srv' },
      listen: { kind: 'fd', fd: 3, origin: '--fd' },
      remarks: [],
      tag: null, readonly: false, announceSubmounts: true, inodeFileHandles: 'auto', cache: 'auto', readdirplus: true,
      writeback: false, allowDirectIo: false, allowMmap: false, allowProjectIds: false, xattr: false, xattrmap: null, posixAcl: 'never', securityLabel: 'never',
      killprivV2: false, flock: false, posixLock: false, preserveNoatime: false, translateUid: [], translateGid: [],
      threadPoolSize: availableParallelism(), offload: 'auto', numRequestQueues: 64, pollUs: 50, allowMemoryFiles: false, rlimitNofile: null, logLevel: 'info',
      sandbox: 'auto', seccomp: 'auto', modcaps: null, uidMap: [], gidMap: [], syslog: false, once: false,
      migrationMode: 'find-paths', migrationOnError: 'abort', migrationVerifyHandles: false, migrationConfirmPaths: false,
      endpoint: null, region: null, profile: null, pathStyle: false, unsigned: false, requesterPays: false, expectedBucketOwner: null, caBundle: null,
      gcsProject: null, storageClass: null, sse: null, kmsKey: null, durability: 'remote', writebackDelay: 5, onConflict: 'keep', cacheDir: null, cacheSize: 0, cacheFill: 'on', dryRun: false,
      metadataTtl: 1, posixMetadata: 'full', privilegedMetadata: false, memoryBudget: 256, uid: 0, gid: 0, fileMode: 0o644, dirMode: 0o755,
    });
  });

  test('the options object is frozen, with its lists', () => {
    const options = run([...BASE, '--translate-uid', 'a']);
    assert.ok(Object.isFrozen(options) && Object.isFrozen(options.translateUid) && Object.isFrozen(options.listen) && Object.isFrozen(options.source));
  });
});

describe('values', () => {
  test('--posix-acl and --security-label take a value with = only: alone they are always, and the next word is not their value', () => {
    for (const [flag, key] of [['posix-acl', 'posixAcl'], ['security-label', 'securityLabel']] as const) {
      const valueOf = (...args: string[]): string => run([...BASE, ...args])[key];
      assert.deepEqual([valueOf(`--${flag}`), valueOf(`--${flag}=auto`), valueOf(`--${flag}`, `--no-${flag}`), valueOf(`--${flag}=never`)], ['always', 'auto', 'never', 'never']);
      refused([...BASE, `--${flag}`, 'auto'], /unexpected argument "auto"/);
      refused([...BASE, `--no-${flag}=auto`], /unknown option/);
    }
  });

  test('--name value and --name=value are the same, and the last one wins', () => {
    assert.equal(run([...BASE, '--cache=never']).cache, 'never');
    assert.equal(run([...BASE, '--cache', 'always', '--cache', 'metadata']).cache, 'metadata');
    assert.equal(run(['--fd=7', '--shared-dir=/data']).listen.kind, 'fd');
  });

  test('every toggle has a --no- form and the last one wins', () => {
    for (const [key, spec] of OPTION_ENTRIES) {
      if (spec.type !== 'toggle' || key === 'readdirplus') continue;
      const on = run([...BASE, `--no-${spec.flag}`, `--${spec.flag}`]) as unknown as Record<string, unknown>;
      const off = run([...BASE, `--${spec.flag}`, `--no-${spec.flag}`]) as unknown as Record<string, unknown>;
      assert.deepEqual([on[key], off[key]], [true, false], spec.flag);
    }
  });

  test('every flag turns its option on', () => {
    for (const [key, spec] of OPTION_ENTRIES) {
      if (spec.type !== 'flag' || spec.flag === '' || spec.flag === 'dry-run') continue;
      assert.equal((run([...baseOf(spec), `--${spec.flag}`]) as unknown as Record<string, unknown>)[key], true, spec.flag);
    }
  });

  test('every number is accepted at both bounds and refused just outside of them', () => {
    for (const [key, spec] of OPTION_ENTRIES) {
      if (spec.type !== 'int') continue;
      const rest = key === 'fd' ? ['--source', '/srv'] : baseOf(spec);
      assert.ok(spec.min !== undefined && spec.max !== undefined, `${spec.flag} has bounds`);
      run([...rest, `--${spec.flag}=${spec.min}`]);
      run([...rest, `--${spec.flag}=${spec.max}`]);
      for (const bad of [spec.min - 1, spec.max + 1, '', 'x', '1.5', '0x10', '1e1', ' 1', '9'.repeat(30), 'NaN']) {
        refused([...rest, `--${spec.flag}=${bad}`], new RegExp(`--${spec.flag} takes a whole number from ${spec.min} to ${spec.max}`));
      }
    }
  });

  test('every choice is accepted, and another value names the choices', () => {
    for (const [key, spec] of OPTION_ENTRIES) {
      if (spec.type !== 'choice' && spec.type !== 'negotiated') continue;
      for (const choice of spec.choices ?? []) {
        assert.equal((run([...baseOf(spec), `--${spec.flag}=${choice}`]) as unknown as Record<string, unknown>)[key], choice);
      }
      refused([...baseOf(spec), `--${spec.flag}=bogus`], new RegExp(`--${spec.flag} takes one of ${spec.choices?.join(', ')}, not "bogus"`));
    }
  });

  test('a string that is empty or too long is refused, by bytes and not by characters', () => {
    refused([...BASE, '--tag='], /--tag needs a value/);
    assert.equal(run([...BASE, `--tag=${'x'.repeat(36)}`]).tag, 'x'.repeat(36));
    refused([...BASE, `--tag=${'ü'.repeat(19)}`], /--tag takes at most 36 bytes, and this value has 38/);
    refused(['--source', '/', `--socket-path=/${'s'.repeat(107)}`], /--socket-path takes at most 107 bytes/);
    refused(['--fd', '3', '--source='], /--source needs a value/);
  });

  test('--translate-uid may be repeated and keeps its order', () => {
    const options = run([...BASE, '--translate-uid=map:1:2:3', '--translate-uid', 'host:4:5:6', '--translate-gid=x']);
    assert.deepEqual(options.translateUid, ['map:1:2:3', 'host:4:5:6']);
    assert.deepEqual(options.translateGid, ['x']);
  });

  test('--rlimit-nofile below what the daemon needs is refused, 0 is not', () => {
    assert.equal(run([...BASE, '--rlimit-nofile=0']).rlimitNofile, 0);
    refused([...BASE, '--rlimit-nofile=255'], /at least 256/);
  });
});

describe('buckets', () => {
  test('a bucket and a prefix are taken literally; the prefix ends with a slash', () => {
    const sourceOf = (text: string): unknown => run(['--fd=3', '--readonly', '--source', text]).source;
    assert.deepEqual(sourceOf('s3://bucket'), { kind: 's3', bucket: 'bucket', prefix: '', path: 's3://bucket' });
    assert.deepEqual(sourceOf('s3://bucket/'), { kind: 's3', bucket: 'bucket', prefix: '', path: 's3://bucket/' });
    assert.deepEqual(sourceOf('gs://my.bucket_1/a b/c%2F?d#e'), { kind: 'gcs', bucket: 'my.bucket_1', prefix: 'a b/c%2F?d#e/', path: 'gs://my.bucket_1/a b/c%2F?d#e' });
    assert.deepEqual((sourceOf('s3://bucket//x/') as { prefix: string }).prefix, '/x/');
  });

  test('--dry-run is for recover, which needs a directory', () => {
    refused([...BASE, '--dry-run'], /for bucketfsd recover/);
    refused(['recover'], /--cache-dir is missing/);
    const command = parseCommandLine(['recover', '--cache-dir', '/state', '--dry-run', '--endpoint', 'http://127.0.0.1:1'], {}, 1);
    assert.ok(command.action === 'recover');
    assert.deepEqual([command.settings.cacheDir, command.settings.dryRun, command.settings.source], ['/state', true, null]);
    assert.deepEqual(command.settings.said, { cacheDir: '/state', dryRun: true, endpoint: 'http://127.0.0.1:1' });
  });

  test('encryption that the provider does not have is refused', () => {
    refused(['--fd=3', '--source=s3://bucket', '--kms-key=k'], /needs --sse=aws:kms/);
    refused(['--fd=3', '--source=gs://bucket', '--sse=AES256'], /--kms-key/);
  });

  test('what means nothing for a kind of source is refused with it', () => {
    refused([...BUCKET, '--xattr'], /--xattr is for a directory, and s3:\/\/bbb is a bucket/);
    refused([...BUCKET, '--modcaps=+mknod'], /--modcaps is for a directory/);
    refused([...BUCKET, '-o', 'cache=always'], /--cache is for a directory/);
    refused([...BASE, '--endpoint=http://x'], /--endpoint is for a bucket, and \/srv is a directory/);
    assert.equal(run([...BUCKET, '--no-xattr', '--cache=auto', '--sandbox=none']).xattr, false, 'saying the default is no mistake');
  });

  test('check wants a bucket and neither --readonly nor where to listen', () => {
    const command = parseCommandLine(['check', '--source=s3://bucket/p', '--region=eu-1'], {}, 1);
    assert.equal(command.action, 'check');
    refused(['check', '--source=/srv'], /check tries buckets, and \/srv is a directory/);
    refused(['check'], /--source is missing/);
    refused([...BUCKET, 'check'], /unexpected argument "check"/);
    refused(['status'], /there is no command status: there are check and recover/);
    refused(['status', '--source=/srv'], /there is no command status/);
  });

  test('what is for one provider is refused for another', () => {
    for (const [, spec] of OPTION_ENTRIES) {
      if (spec.only !== 's3' && spec.only !== 'gcs') continue;
      const value = spec.type === 'flag' ? `--${spec.flag}` : `--${spec.flag}=${spec.choices?.[0] ?? 'x'}`;
      refused([...(spec.only === 's3' ? GCS : BUCKET), value], new RegExp(`--${spec.flag} is for (S3, and gs://bbb is on Google Cloud Storage|Google Cloud Storage, and s3://bbb is on S3)`));
    }
  });

  test('what has no effect beside the others is refused', () => {
    for (const option of ['--durability=writeback', '--on-conflict=overwrite', '--storage-class=X', '--sse=AES256']) {
      refused([...BUCKET, '--readonly', option], /--[a-z-]+ is about writing, and --readonly refuses every change/);
    }
    refused([...BUCKET, '--cache-fill=off'], /--cache-fill is for --cache-size/);
    refused([...BUCKET, '--unsigned', '--profile=p'], /--unsigned uses no credentials/);
    assert.equal(run([...BUCKET, '--readonly', '--durability=remote', '--writeback-delay=5']).readonly, true, 'saying the default is no mistake');
  });

  test('an endpoint is a URL of HTTP, and no more', () => {
    for (const bad of ['127.0.0.1:7480', 'localhost:7480', 'ftp://x', 'http://', 'http://u:p@h', 'http://h/?q', 'http://h/#f']) {
      refused([...BUCKET, `--endpoint=${bad}`], /--endpoint takes a URL that begins with http:\/\/ or https:\/\/, such as/);
    }
    assert.equal(run([...BUCKET, '--endpoint=HTTPS://h:1/base']).endpoint, 'HTTPS://h:1/base');
  });

  test('a region is a part of a host name', () => {
    for (const bad of ['x y', 'a.b', 'ü']) refused([...BUCKET, `--region=${bad}`], /--region is letters, digits and hyphens/);
    assert.equal(run([...BUCKET, '--region=eu-north-1']).region, 'eu-north-1');
  });

  test('permissions are octal', () => {
    assert.equal(run([...BUCKET, '--file-mode=0600']).fileMode, 0o600);
    for (const bad of ['888', '', 'rw', '10000', '-1', '0o644']) refused([...BUCKET, `--file-mode=${bad}`], /--file-mode takes permissions in octal/);
  });
});

describe('implications', () => {
  test('--xattrmap, --posix-acl and --security-label imply --xattr', () => {
    for (const option of ['--xattrmap=:map::user.:', '--posix-acl', '--security-label']) assert.equal(run([...BASE, option, '--no-xattr']).xattr, true);
  });

  test('--cache=never turns READDIRPLUS off', () => {
    assert.equal(run([...BASE, '--cache=never', '--readdirplus']).readdirplus, false);
    assert.equal(run([...BASE, '--no-readdirplus']).readdirplus, false);
  });

  test('-d is --log-level=debug', () => assert.equal(run([...BASE, '-d']).logLevel, 'debug'));
});

describe('where to listen', () => {
  const systemd = { LISTEN_FDS: '1', LISTEN_PID: '42' };

  test('--socket-path takes a group along', () => {
    assert.deepEqual(run(['--source', '/', '--socket-path', '/run/x', '--socket-group', 'kvm']).listen, { kind: 'path', path: '/run/x', group: 'kvm' });
  });

  test('a socket from systemd is descriptor 3', () => {
    assert.deepEqual(run(['--source', '/'], systemd, 42).listen, { kind: 'fd', fd: 3, origin: 'LISTEN_FDS' });
  });

  test('LISTEN_FDS for another process does not count', () => refused(['--source', '/'], /one of --socket-path and --fd is needed/, systemd, 43));

  test('none, two, or a group without a path is refused', () => {
    refused(['--source', '/'], /one of --socket-path and --fd is needed/);
    refused([...BASE, '--socket-path=/run/x'], /--socket-path and --fd exclude each other/);
    refused(['--source', '/', '--socket-path=/run/x'], /--socket-path and a socket from systemd \(LISTEN_FDS\) exclude each other/, systemd, 42);
    refused([...BASE, '--socket-group=kvm'], /--socket-group needs --socket-path/);
    refused(['--source', '/'], /systemd passed 2 sockets/, { LISTEN_FDS: '2', LISTEN_PID: '42' }, 42);
  });
});

describe('source', () => {
  test('a path, a relative path and a file URL name a directory', () => {
    assert.equal(run(['--fd=3', '--source', '/a/../b/']).source.path, '/b');
    assert.equal(run(['--fd=3', '--source', 'rel']).source.path, `${process.cwd()}/rel`);
    assert.equal(run(['--fd=3', '--source', 'file:///a%20b']).source.path, '/a b');
    assert.equal(run(['--fd=3', '--source', 'file://localhost/a']).source.path, '/a');
  });

  test('a bucket, another scheme, another host and a fragment are refused', () => {
    for (const source of ['s3://', 's3:///x', 's3://a', 's3://-bad', 'gs://b b', `s3://${'b'.repeat(300)}`, 's3://bucket$']) {
      refused(['--fd=3', '--readonly', `--source=${source}`], /names no bucket: write (s3|gs):\/\/BUCKET/);
    }
    refused(['--fd=3', '--readonly', `--source=s3://bbb/${'p'.repeat(1000)}`], /prefix of more than 768 bytes/);
    refused(['--fd=3', '--source=http://h/'], /takes a directory, a file:\/\/ URL, s3:\/\/BUCKET, gs:\/\/BUCKET or memory:/);
    refused(['--fd=3', '--source=file://host/a'], /not a file URL of this host/);
    refused(['--fd=3', '--source=file:///a#b'], /not a file URL of this host/);
  });

  test('no source is refused', () => refused(['--fd=3'], /--source is missing/));
});

describe('what is wrong is said in one sentence', () => {
  test('unknown option, with a near one', () => refused([...BASE, '--flok'], /unknown option --flok; did you mean --flock\?/));
  test('value missing', () => refused(['--source', '/', '--fd'], /--fd <N> argument missing/));
  test('migration by handles with what is for paths', () => {
    run([...BASE, '--migration-mode=file-handles']);
    refused([...BASE, '--migration-mode=file-handles', '--migration-confirm-paths'], /for --migration-mode=find-paths/);
  });
  test('value for a flag', () => refused([...BASE, '--xattr=1'], /unknown option --xattr=1/));
  test('stray argument', () => refused([...BASE, '/dir'], /unexpected argument "\/dir"/));
  test('known from virtiofsd but not there', () => {
    for (const [, spec] of OPTION_ENTRIES) {
      if (spec.type !== 'refused') continue;
      const value = spec.value === undefined ? [] : ['x'];
      refused([...BASE, `--${spec.flag}`, ...value], /is not available( yet)?: \S/);
    }
  });
});

describe('legacy -o', () => {
  const legacy = (list: string): Options => run(['--fd', '3', '-o', list]);

  test("what libvirt 9.0 and 11.3 pass for the same XML means the same", () => {
    const list = run(['--fd=32', '-o', 'source=/srv,cache=none,xattr', '--thread-pool-size=2']);
    const options = run(['--fd=32', '--shared-dir', '/srv', '--cache', 'never', '--xattr', '--thread-pool-size=2']);
    assert.deepEqual(options, list);
    const more = run(['--fd=32', '--shared-dir', '/srv', '--readonly', '--rlimit-nofile=4096', '--log-level', 'debug']);
    assert.deepEqual([more.readonly, more.rlimitNofile, more.logLevel], [true, 4096, 'debug']);
  });

  test("libvirt's command line is understood", () => {
    const options = run(['--fd=12', '-o', 'source=/srv,cache=always,xattr,flock,no_posix_lock', '--thread-pool-size=3', '-f', '-d']);
    assert.equal(options.source.path, '/srv');
    assert.deepEqual([options.cache, options.xattr, options.flock, options.posixLock], ['always', true, true, false]);
    assert.deepEqual([options.threadPoolSize, options.logLevel], [3, 'debug']);
  });

  test('every key of the table sets what its long option sets', () => {
    for (const [key, spec] of OPTION_ENTRIES) {
      if (spec.legacy === undefined || spec.type === 'refused' || key === 'debug') continue;
      const value = spec.choices?.[0] ?? (spec.type === 'string' ? '/v' : null);
      const item = value === null ? spec.legacy : `${spec.legacy}=${value}`;
      const long = value === null ? `--${spec.flag}` : `--${spec.flag}=${value}`;
      assert.deepEqual(run(['--fd=3', '-o', `source=/v,${item}`]), run(['--fd=3', '--source=/v', long]), spec.legacy);
      if (spec.type === 'negotiated') assert.deepEqual(legacy(`source=/v,${spec.legacy}`), run(['--fd=3', '--source=/v', `--${spec.flag}`]));
      if (spec.type === 'toggle' || spec.type === 'negotiated') {
        assert.deepEqual(legacy(`source=/v,no_${spec.legacy}`), run(['--fd=3', '--source=/v', `--no-${spec.flag}`]), spec.legacy);
      }
    }
  });

  test("the C daemon's spellings cache=none, log_level=err and debug are understood", () => {
    assert.equal(legacy('source=/,cache=none').cache, 'never');
    assert.equal(legacy('source=/,log_level=err').logLevel, 'error');
    assert.equal(legacy('source=/,debug').logLevel, 'debug');
  });

  test('a comma in a value is written ,, or \\, and another backslash stands for itself', () => {
    assert.deepEqual(splitList('a=1,,2,b\\,c,d\\e,'), ['a=1,2', 'b,c', 'd\\e']);
    assert.equal(legacy('source=/a,,b,xattr').source.path, '/a,b');
  });

  test('later ones win over earlier ones, in either form', () => {
    assert.equal(run(['--fd=3', '-o', 'source=/,cache=always', '--cache=never']).cache, 'never');
    assert.equal(run(['--fd=3', '--cache=never', '-osource=/,cache=always']).cache, 'always');
  });

  test('keys of libfuse without a meaning here are ignored', () => assert.equal(legacy('source=/,allow_root,max_idle_threads=4').cache, 'auto'));

  test('an unknown key, a missing or surplus value, and what is not available are refused', () => {
    refused(['--fd=3', '-o', 'source=/,bogus'], /-o does not know "bogus"/);
    refused(['--fd=3', '-o', 'source'], /-o source needs a value/);
    refused(['--fd=3', '-o', 'source=/,xattr=1'], /-o xattr takes no value/);
    refused(['--fd=3', '-o', 'source=/,cache=x'], /-o cache takes one of/);
    refused(['--fd=3', '-o', 'source=/,timeout=5'], /-o timeout is not available: choose .* --cache/);
    refused(['--fd=3', '-o', 'source=/,modcaps'], /-o modcaps needs a value/);
  });
});

describe('what is printed', () => {
  test('--print-capabilities is the JSON of the conventions, whatever else is there', () => {
    assert.deepEqual(JSON.parse(printed(['--bogus', 'x', '--print-capabilities'])), { type: 'fs', features: ['separate-options', 'posix-acl-negotiation-mode', 'security-label-negotiation-mode'] });
  });

  test('--version is the version of package.json', () => {
    assert.match(version(), /^\d+\.\d+\.\d+/);
    assert.equal(printed(['-V']), `bucketfsd ${version()}\n`);
    assert.equal(printed(['--version', '--source', '/']), `bucketfsd ${version()}\n`);
  });

  test('--help names every option of the table, and no line is longer than a terminal of 80 columns', () => {
    const help = printed(['-h']);
    assert.equal(help, helpText());
    for (const [, spec] of OPTION_ENTRIES) {
      for (const name of [spec.flag === '' ? `-${spec.short}` : `--${spec.flag}`, ...(spec.alias ? [`--${spec.alias}`] : [])]) {
        assert.ok(new RegExp(`(^|[\\s])${name}(?![\\w-])`, 'm').test(help), `${name} is in the help`);
      }
    }
    for (const line of help.split('\n')) assert.ok(line.length <= 80, line);
  });

  test('the options section of the manual names every option, its legacy key and its bounds', () => {
    const markdown = optionsMarkdown();
    for (const [, spec] of OPTION_ENTRIES) {
      assert.ok(markdown.includes(spec.flag === '' ? `\`-${spec.short}` : `--${spec.flag}`), spec.flag);
      if (spec.legacy !== undefined) assert.ok(markdown.includes(`\`${spec.legacy}\``), spec.legacy);
      if (spec.type === 'int') assert.ok(markdown.includes(`(${spec.min} to ${spec.max})`), spec.flag);
    }
    assert.ok(!markdown.includes(`| ${availableParallelism()} |`), 'nothing depends on this machine');
  });
});

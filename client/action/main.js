// The action's main step: checks the inputs, finds the program, starts the tunnel,
// waits for its first line and sets the outputs and variables.
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { spawn } = require('node:child_process');
const runner = require('./runner');
const binary = require('./binary');

const MODES = ['proxy', 'files', 'none'];
// The issuer may be asleep, and requests to GitHub's token endpoint are retried for 90 s.
const START_MS = 180_000;
// How long mayfly proxy --wake and mayfly cert --wake wait for the engine at most.
const WAKE_MS = 180_000;

// The inputs that mayfly reads from its environment.
const VARIABLES = [['issuer', 'MAYFLY_ISSUER'], ['trust-anchor', 'MAYFLY_TRUST_ANCHOR'], ['audience', 'MAYFLY_AUDIENCE'], ['ca-file', 'MAYFLY_CA_FILE']];

async function main() {
  binary.checkSystem();
  const mode = runner.input('mode', 'proxy');
  if (!MODES.includes(mode)) throw new Error(`input mode: "${mode}" is none of ${MODES.join(', ')}`);
  const exportEnv = runner.boolean('export-env', true);
  if (mode === 'none' && !exportEnv) throw new Error('mode none only gives mayfly to later steps, and export-env: false keeps it from them: leave one of the two out');
  const wake = runner.boolean('wake', true);
  const variables = given(mode);
  const folder = temporaryFolder();
  runner.saveState('folder', folder);

  const bin = path.join(folder, 'bin');
  fs.mkdirSync(bin, { mode: 0o700 });
  const program = await binary.find(runner.input('version'), bin);
  runner.info(`mayfly from ${program.from}`);
  // Install before the tunnel starts, so that a step after a failure can run mayfly doctor.
  if (exportEnv) install(program, bin, variables);
  if (mode === 'none') return;
  checkToken();
  const started = await start(program.file, mode, wake, variables, folder);
  runner.saveState('started', JSON.stringify(started));
  handOn(started, mode, exportEnv, folder);
}

// given returns the variables of the inputs that have a value.
function given(mode) {
  const values = Object.fromEntries(VARIABLES.map(([input, name]) => [name, runner.input(input)]).filter(([, value]) => value !== ''));
  if (!values.MAYFLY_ISSUER && mode !== 'none') throw new Error('input issuer is empty: give the URL of your mayfly issuer');
  if (values.MAYFLY_CA_FILE) values.MAYFLY_CA_FILE = path.resolve(values.MAYFLY_CA_FILE);
  return values;
}

// install lets later steps run mayfly without flags, as its hints show.
function install(program, bin, variables) {
  if (!program.inPath) runner.addPath(bin);
  for (const [name, value] of Object.entries(variables)) runner.exportVariable(name, value);
}

// checkToken reports a missing permission early. GitHub only leaves the variables out.
function checkToken() {
  if (process.env.ACTIONS_ID_TOKEN_REQUEST_URL && process.env.ACTIONS_ID_TOKEN_REQUEST_TOKEN) {
    runner.mask(process.env.ACTIONS_ID_TOKEN_REQUEST_TOKEN);
    return;
  }
  throw new Error('this job has no OIDC token. Add to the job:\n  permissions:\n    id-token: write\n    contents: read\n' +
    '(A pull request from a fork, or by Dependabot, gets none whatever the workflow says.)');
}

// A socket's path has at most 107 bytes, and 103 on macOS. mayfly binds the socket under
// this name in its folder, and then moves it.
const MAX_SOCKET_PATH = 103;
const BOUND_NAME = '.m0123456789/s';

// holdsSockets reports whether other users cannot change files that this step makes in
// dir, and the path of a socket there is short and needs no escaping.
function holdsSockets(dir) {
  if (!/^\/[A-Za-z0-9/._-]*$/.test(dir) || path.join(dir, 'mayfly-123456', BOUND_NAME).length > MAX_SOCKET_PATH) return false;
  const info = fs.statSync(dir, { throwIfNoEntry: false });
  return info !== undefined && info.isDirectory() && [0, process.getuid()].includes(info.uid) &&
    ((info.mode & 0o022) === 0 || (info.mode & 0o1000) !== 0);
}

// temporaryFolder makes a 0700 folder for this step, because any user who can open the
// socket in it can use the engine.
function temporaryFolder() {
  const { RUNNER_TEMP: temp } = process.env;
  if (!temp) throw new Error('RUNNER_TEMP is not set: this action runs in GitHub Actions (or nektos/act)');
  const failed = [];
  for (const base of [temp, os.tmpdir(), '/tmp'].filter(holdsSockets)) {
    try {
      const folder = fs.mkdtempSync(path.join(base, 'mayfly-'));
      if (base !== temp) runner.info(`RUNNER_TEMP, ${temp}, cannot hold the tunnel's socket: it is in ${folder}`);
      return folder;
    } catch (err) {
      failed.push(err.message);
    }
  }
  throw new Error(`no folder can hold the tunnel's socket: ${failed.join('; ') || temp}. Set TMPDIR to a short path of letters and digits, of the runner's user`);
}

function commandLine(mode, wake, folder) {
  const args = mode === 'files'
    ? ['--json', 'cert', '--out', path.join(folder, 'certificate'), '--watch']
    : ['--json', 'proxy', '--listen', `unix:${path.join(folder, 'engine.sock')}`, '--report', path.join(folder, 'report.json')];
  if (wake) args.push('--wake');
  const engine = runner.input('engine');
  if (engine !== '') args.push('--engine', engine);
  return args;
}

// start runs the program in the background, prints its log, and waits for its first
// JSON line.
async function start(program, mode, wake, variables, folder) {
  const out = path.join(folder, 'stdout.json');
  const log = path.join(folder, 'mayfly.log');
  const args = commandLine(mode, wake, folder);
  const child = spawn(program, args, {
    detached: true,
    env: { ...process.env, ...variables, NO_COLOR: '1' },
    stdio: ['ignore', fs.openSync(out, 'w', 0o600), fs.openSync(log, 'w', 0o600)],
  });
  const ended = new Promise((resolve) => {
    child.once('error', (err) => resolve({ why: `could not be started: ${err.message}` }));
    child.once('exit', (code, signal) => resolve({ why: `ended with ${signal || `exit code ${code}`}` }));
  });
  runner.saveState('pid', String(child.pid || ''));

  const print = printer(log);
  const printing = setInterval(print, 200);
  const line = await Promise.race([firstLine(out), ended, deadline(START_MS + (wake ? WAKE_MS : 0))]);
  clearInterval(printing);
  print(true);
  if (line.why) {
    if (child.pid) try { process.kill(child.pid, 'SIGTERM'); } catch { /* gone already */ }
    const said = fs.readFileSync(log, 'utf8').trim();
    throw new Error(`mayfly ${args[1]} ${line.why}${said === '' ? '' : `:\n${said}`}`);
  }
  child.unref();
  return line;
}

// printer returns a function that prints the whole lines written to file since its last
// call. With all set, it also prints the rest.
function printer(file) {
  let printed = 0;
  return (all = false) => {
    const text = fs.readFileSync(file, 'utf8');
    const end = all ? text.length : text.lastIndexOf('\n') + 1;
    if (end > printed) runner.info(text.slice(printed, end).trimEnd());
    printed = Math.max(printed, end);
  };
}

async function firstLine(file) {
  for (;;) {
    const text = fs.readFileSync(file, 'utf8');
    const end = text.indexOf('\n');
    if (end >= 0) return JSON.parse(text.slice(0, end));
    await new Promise((resolve) => { setTimeout(resolve, 25); });
  }
}

function deadline(ms) {
  return new Promise((resolve) => {
    setTimeout(() => resolve({ why: `gave no address within ${ms / 1000} s` }), ms).unref();
  });
}

function handOn(started, mode, exportEnv, folder) {
  runner.output('serial', started.serial);
  runner.output('expires-at', started.expires_at);
  runner.output('runner-host', started.runner_host);
  runner.output('buildkit-host', started.buildkit_host);
  runner.output('certificate', mode === 'files' ? path.join(folder, 'certificate') : '');
  if (exportEnv) {
    runner.exportVariable('_EXPERIMENTAL_DAGGER_RUNNER_HOST', started.runner_host);
    runner.exportVariable('BUILDKIT_HOST', started.buildkit_host);
  }
  runner.info(mode === 'files' ? `key and certificate are in ${folder}/certificate` : `the engine is at ${started.runner_host}`);
}

main().then(() => process.exit(0), (err) => {
  runner.error(err.message);
  process.exit(1);
});

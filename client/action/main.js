// The action's main step: checks the inputs, finds the program, starts the
// tunnel, waits for its first line and hands its address on.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { spawn } = require('node:child_process');
const runner = require('./runner');
const binary = require('./binary');

const MODES = ['proxy', 'files', 'none'];
// The issuer may have to wake, and GitHub's token endpoint is retried for 90 s.
const START_MS = 180_000;

async function main() {
  const mode = runner.input('mode', 'proxy');
  if (!MODES.includes(mode)) throw new Error(`input mode: "${mode}" is none of ${MODES.join(', ')}`);
  const exportEnv = runner.boolean('export-env', true);
  const issuer = checkedIssuer(mode);
  const folder = temporaryFolder();
  runner.saveState('folder', folder);

  const program = await binary.find(runner.input('version'), folder);
  runner.info(`mayfly from ${program.from}`);
  if (mode === 'none') {
    runner.addPath(path.dirname(program.file));
    return;
  }
  checkToken();
  const started = await start(program.file, mode, issuer, folder);
  runner.saveState('started', JSON.stringify(started));
  handOn(started, mode, exportEnv, folder);
}

function checkedIssuer(mode) {
  const issuer = runner.input('issuer');
  if (issuer === '' && mode !== 'none') throw new Error('input issuer is empty: give the URL of your mayfly issuer');
  return issuer;
}

// checkToken tells early what GitHub says only by leaving variables out.
function checkToken() {
  if (process.env.ACTIONS_ID_TOKEN_REQUEST_URL && process.env.ACTIONS_ID_TOKEN_REQUEST_TOKEN) {
    runner.mask(process.env.ACTIONS_ID_TOKEN_REQUEST_TOKEN);
    return;
  }
  throw new Error('this job has no OIDC token. Add to the job:\n  permissions:\n    id-token: write\n    contents: read\n' +
    '(A pull request from a fork, or by Dependabot, gets none whatever the workflow says.)');
}

function temporaryFolder() {
  const base = process.env.RUNNER_TEMP;
  if (!base) throw new Error('RUNNER_TEMP is not set: this action runs in GitHub Actions (or nektos/act)');
  // mkdtemp makes it 0700: whoever may open the socket in it may use the engine.
  return fs.mkdtempSync(path.join(base, 'mayfly-'));
}

function commandLine(mode, folder) {
  const common = ['--json'];
  if (mode === 'files') return [...common, 'cert', '--out', path.join(folder, 'certificate'), '--watch'];
  return [...common, 'proxy', '--listen', `unix:${path.join(folder, 'engine.sock')}`];
}

function environment(issuer) {
  const env = { ...process.env, MAYFLY_ISSUER: issuer, NO_COLOR: '1' };
  for (const [name, variable] of [['audience', 'MAYFLY_AUDIENCE'], ['trust-anchor', 'MAYFLY_TRUST_ANCHOR'], ['ca-file', 'MAYFLY_CA_FILE']]) {
    const value = runner.input(name);
    if (value !== '') env[variable] = value;
  }
  return env;
}

// start runs the program in the background and waits for its first JSON line.
async function start(program, mode, issuer, folder) {
  const out = path.join(folder, 'stdout.json');
  const log = path.join(folder, 'mayfly.log');
  const args = commandLine(mode, folder);
  const engine = runner.input('engine');
  if (engine !== '') args.push('--engine', engine);
  if (mode === 'proxy') args.push('--report', path.join(folder, 'report.json'));

  const child = spawn(program, args, {
    detached: true,
    env: environment(issuer),
    stdio: ['ignore', fs.openSync(out, 'w', 0o600), fs.openSync(log, 'w', 0o600)],
  });
  const ended = new Promise((resolve) => {
    child.once('error', (err) => resolve(`could not be started: ${err.message}`));
    child.once('exit', (code, signal) => resolve(`ended with ${signal || `exit code ${code}`}`));
  });
  runner.saveState('pid', String(child.pid || ''));

  const line = await Promise.race([firstLine(out), ended.then((why) => ({ why })), deadline()]);
  const said = fs.readFileSync(log, 'utf8');
  if (said.trim() !== '') runner.info(said.trimEnd());
  if (line.why) {
    if (child.pid) try { process.kill(child.pid, 'SIGTERM'); } catch { /* gone already */ }
    throw new Error(`mayfly ${args[1]} ${line.why}${said.trim() === '' ? '' : `:\n${said.trim()}`}`);
  }
  child.unref();
  return line;
}

async function firstLine(file) {
  for (;;) {
    const text = fs.readFileSync(file, 'utf8');
    const end = text.indexOf('\n');
    if (end >= 0) return JSON.parse(text.slice(0, end));
    await new Promise((resolve) => { setTimeout(resolve, 25); });
  }
}

function deadline() {
  return new Promise((resolve) => {
    setTimeout(() => resolve({ why: `said nothing for ${START_MS / 1000} s` }), START_MS).unref();
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

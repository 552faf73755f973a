package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/command"
)

// Names of the files that rotate sign writes and rotate install reads.
const (
	signedIntermediate = "intermediate.crt"
	signedRootCRL      = "root.crl"
)

// rotatedFolder returns the folder of the config's CA. Its files must have the names
// that init gave them, because a rotation writes those and serve reads them.
func rotatedFolder(f configFlag) (string, error) {
	cfg, err := f.load()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(cfg.CA.Intermediate)
	root, crl, intermediate, key := ca.RotatedFiles(dir)
	files := [][3]string{{"root", cfg.CA.Root, root}, {"root_crl", cfg.CA.RootCRL, crl}, {"intermediate", cfg.CA.Intermediate, intermediate}}
	if filepath.IsAbs(cfg.CA.Key) { // LoadConfig leaves only an absolute path as it is
		files = append(files, [3]string{"key", cfg.CA.Key, key})
	}
	for _, f := range files {
		if filepath.Clean(f[1]) != f[2] {
			return "", fmt.Errorf("ca.%s is %s, and a rotation would write %s: give the files of the CA one folder and the names that init gave them", f[0], f[1], f[2])
		}
	}
	return dir, nil
}

type rotateCommands struct {
	Request rotateRequestCommand `cmd:"" help:"Make the next intermediate's key and its request, on the issuer's side."`
	Sign    rotateSignCommand    `cmd:"" help:"Sign it with the root's key, offline."`
	Install rotateInstallCommand `cmd:"" help:"Put the new intermediate into use."`
}

type rotateRequestCommand struct {
	configFlag
	Key string `help:"A new key that exists already: a path, env:NAME or a KMS URI. Default: one is made next to ca.intermediate." placeholder:"KEY"`
}

// Run makes the key and the request of the next intermediate.
func (c *rotateRequestCommand) Run(ctx context.Context, i *invocation) error {
	folder, err := rotatedFolder(c.configFlag)
	if err != nil {
		return err
	}
	req, err := ca.RequestRotation(ctx, folder, c.Key)
	if err != nil {
		return err
	}
	if req.Key != "" {
		fmt.Fprintf(i.Out, "made %s: it stays here\n", req.Key)
	}
	_, err = fmt.Fprintf(i.Out, "made %s: bring it to the root, and there run\n  mayfly-issuer rotate sign --root DIR --root-password-file FILE --request FILE --out DIR\n", req.Request)
	return err
}

type rotateSignCommand struct {
	Root             string   `help:"The offline folder that init wrote." placeholder:"DIR"`
	RootKey          string   `help:"The root's encrypted key. Default: root.key in --root." placeholder:"FILE"`
	RootPasswordFile string   `help:"File whose first line is the key's password; - reads the input." required:"" placeholder:"FILE"`
	Request          string   `help:"The request. Left out: the root's CRL alone is signed." placeholder:"FILE"`
	Out              string   `help:"Folder to write to, made when missing." required:"" placeholder:"DIR"`
	IssuerURL        string   `help:"With --engine-dns: how clients reach the issuer." name:"issuer-url" placeholder:"URL"`
	EngineDNS        []string `help:"Replaces the DNS names that certificates may have; may be repeated." name:"engine-dns" placeholder:"NAME"`
	Compromised      []string `help:"An intermediate that must not be trusted any more: its certificate's path or its serial; may be repeated." placeholder:"FILE|SERIAL"`
}

// Run signs the next intermediate and the root's CRL, offline.
func (c *rotateSignCommand) Run(ctx context.Context, i *invocation) error {
	if c.Root == "" && c.RootKey != "" {
		c.Root = filepath.Dir(c.RootKey)
	}
	if c.Root == "" {
		return command.Usagef("give --root or --root-key")
	}
	o := ca.RotationOptions{RootDir: c.Root, RootKey: c.RootKey, IssuerURL: c.IssuerURL}
	var err error
	if o.EngineDNS, err = names("engine-dns", c.EngineDNS); err != nil {
		return err
	}
	if o.Compromised, err = names("compromised", c.Compromised); err != nil {
		return err
	}
	if o.Password, err = passwordFrom(i, c.RootPasswordFile); err != nil {
		return err
	}
	if c.Request != "" {
		if o.Request, err = readFile(c.Request, nil); err != nil {
			return err
		}
	}
	signed, err := ca.SignRotation(ctx, o)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	if signed.Intermediate != nil {
		if err := os.WriteFile(filepath.Join(c.Out, signedIntermediate), signed.Intermediate, 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(c.Out, signedRootCRL), signed.RootCRL, 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintf(i.Out, "signed into %s: bring it to the issuer, and there run\n  mayfly-issuer rotate install --config issuer.yaml --signed DIR\n", c.Out)
	return err
}

func passwordFrom(i *invocation, path string) ([]byte, error) {
	if path != "-" {
		return firstLine(path)
	}
	data, err := readFile("-", i.In)
	if err != nil {
		return nil, err
	}
	return lineOf(data, "the input")
}

type rotateInstallCommand struct {
	configFlag
	Signed string `help:"The folder that rotate sign wrote." required:"" placeholder:"DIR"`
	Key    string `help:"The new key, where rotate request was given one." placeholder:"KEY"`
}

// Run puts the new intermediate into use. It takes a new CRL number, so that every
// engine sees the change.
func (c *rotateInstallCommand) Run(ctx context.Context, i *invocation) error {
	folder, err := rotatedFolder(c.configFlag)
	if err != nil {
		return err
	}
	signed, err := readSigned(c.Signed)
	if err != nil {
		return err
	}
	installed, err := ca.InstallRotation(ctx, folder, signed, c.Key)
	if err != nil {
		return err
	}
	fmt.Fprintf(i.Out, "installed; the intermediate that issues ends %s\n", installed.NotAfter.UTC().Format(time.RFC3339))
	if installed.PreviousCertificate != "" {
		fmt.Fprintf(i.Out, "the one before goes on signing CRLs: %s", installed.PreviousCertificate)
		if installed.PreviousKey != "" {
			fmt.Fprintf(i.Out, ", %s\n", installed.PreviousKey)
		} else {
			fmt.Fprint(i.Out, "\n  its key is not in the folder: name both under ca.previous\n")
		}
	}
	h, err := openHost(ctx, c.configFlag)
	if err != nil {
		return command.WithHint(fmt.Errorf("the new files are in place, but the CA cannot be opened: %w", err), "correct ca.key so that it names the new key, and run rotate install again")
	}
	defer h.Close()
	crls, err := h.authority.Publish(ctx, "host/"+hostUser())
	if err != nil {
		return command.WithHint(err, "the files are in place: run rotate install again")
	}
	_, err = fmt.Fprintf(i.Out, "CRL number %d is published\nrestart mayfly-issuer serve: it stops in order, and issues with the new intermediate\n", crls.Number)
	return err
}

func readSigned(dir string) (ca.Rotation, error) {
	var r ca.Rotation
	var err error
	if r.Intermediate, err = readFile(filepath.Join(dir, signedIntermediate), nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	r.RootCRL, err = readFile(filepath.Join(dir, signedRootCRL), nil)
	return r, err
}

// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Keys of the Secret. tls.crt and tls.key are those of kubernetes.io/tls.
const (
	caCertKey = "ca.crt"
	caKeyKey  = "ca.key"
)

// Config is what a Keeper needs.
type Config struct {
	// Client reads and writes without a cache: the Keeper runs before caches
	// do and sees one Secret only.
	Client client.Client
	// Secret names the Secret.
	Secret client.ObjectKey
	// DNSNames are the names that the API server dials, the first of them
	// <service>.<namespace>.svc.
	DNSNames []string
	// MutatingConfig and ValidatingConfig name the webhook configurations
	// whose caBundle is kept. Empty means there is none.
	MutatingConfig, ValidatingConfig string
	// Interval is the time between two looks at the Secret; 0 means a minute.
	Interval time.Duration
}

// Validate tells what is missing.
func (c Config) Validate() error {
	var errs []error
	if c.Client == nil {
		errs = append(errs, errors.New("client is missing"))
	}
	if c.Secret.Name == "" || c.Secret.Namespace == "" {
		errs = append(errs, errors.New("secret has no name or namespace"))
	}
	if len(c.DNSNames) == 0 {
		errs = append(errs, errors.New("dnsNames is empty"))
	}
	return errors.Join(errs...)
}

// Keeper keeps the webhooks' serving certificate. It serves until its context
// ends and is safe for concurrent use.
type Keeper struct {
	config  Config
	serving atomic.Pointer[tls.Certificate]
}

// NewKeeper checks the configuration; it starts nothing.
func NewKeeper(config Config) (*Keeper, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("check webhook certificate configuration: %w", err)
	}
	if config.Interval == 0 {
		config.Interval = time.Minute
	}
	return &Keeper{config: config}, nil
}

// GetCertificate is for tls.Config. It fails until the first Sync succeeded.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := k.serving.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("the webhook certificate is not there yet")
}

// Sync makes the Secret hold a good certificate, serves it, and then makes the
// webhook configurations trust it. It is idempotent.
func (k *Keeper) Sync(ctx context.Context, now time.Time) error {
	bundle, err := k.ensureSecret(ctx, now)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(bundle.Cert, bundle.Key)
	if err != nil {
		return fmt.Errorf("read webhook certificate: %w", err)
	}
	k.serving.Store(&pair)
	return errors.Join(k.trustMutating(ctx, bundle.CA), k.trustValidating(ctx, bundle.CA))
}

// Start keeps the certificate until ctx ends. It is a manager.Runnable.
func (k *Keeper) Start(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx)
	tick := time.NewTicker(k.config.Interval)
	defer tick.Stop()
	for {
		if err := k.Sync(ctx, time.Now()); err != nil && ctx.Err() == nil {
			log.Error(err, "Webhook certificate not kept, will retry", "secret", k.config.Secret)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// NeedLeaderElection is false: every replica serves the webhooks.
func (k *Keeper) NeedLeaderElection() bool { return false }

// ensureSecret reads, makes or renews the Secret. When another replica was
// faster, its bundle is taken.
func (k *Keeper) ensureSecret(ctx context.Context, now time.Time) (Bundle, error) {
	const tries = 5
	for range tries {
		secret := &corev1.Secret{}
		err := k.config.Client.Get(ctx, k.config.Secret, secret)
		absent := apierrors.IsNotFound(err)
		if err != nil && !absent {
			return Bundle{}, fmt.Errorf("get secret %s: %w", k.config.Secret, err)
		}
		fresh, changed, err := Renew(fromSecret(secret), k.config.DNSNames, now)
		if err != nil || !changed {
			return fresh, err
		}
		secret.Name, secret.Namespace = k.config.Secret.Name, k.config.Secret.Namespace
		intoSecret(fresh, secret)
		if absent {
			err = k.config.Client.Create(ctx, secret)
		} else {
			err = k.config.Client.Update(ctx, secret)
		}
		if err == nil {
			return fresh, nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return Bundle{}, fmt.Errorf("write secret %s: %w", k.config.Secret, err)
		}
	}
	return Bundle{}, fmt.Errorf("write secret %s: somebody else changed it %d times in a row", k.config.Secret, tries)
}

func fromSecret(s *corev1.Secret) Bundle {
	return Bundle{CA: s.Data[caCertKey], CAKey: s.Data[caKeyKey], Cert: s.Data[corev1.TLSCertKey], Key: s.Data[corev1.TLSPrivateKeyKey]}
}

func intoSecret(b Bundle, s *corev1.Secret) {
	if s.Type == "" {
		s.Type = corev1.SecretTypeTLS
	}
	s.Data = map[string][]byte{caCertKey: b.CA, caKeyKey: b.CAKey, corev1.TLSCertKey: b.Cert, corev1.TLSPrivateKeyKey: b.Key}
}

func (k *Keeper) trustMutating(ctx context.Context, ca []byte) error {
	config := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: k.config.MutatingConfig}}
	return k.trust(ctx, config, ca, func() (bundles []*[]byte) {
		for i := range config.Webhooks {
			bundles = append(bundles, &config.Webhooks[i].ClientConfig.CABundle)
		}
		return bundles
	})
}

func (k *Keeper) trustValidating(ctx context.Context, ca []byte) error {
	config := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: k.config.ValidatingConfig}}
	return k.trust(ctx, config, ca, func() (bundles []*[]byte) {
		for i := range config.Webhooks {
			bundles = append(bundles, &config.Webhooks[i].ClientConfig.CABundle)
		}
		return bundles
	})
}

// trust patches every caBundle of one webhook configuration that differs. The
// patch carries the resource version: a list may not be patched blindly.
func (k *Keeper) trust(ctx context.Context, config client.Object, ca []byte, bundles func() []*[]byte) error {
	name := config.GetName()
	if name == "" {
		return nil
	}
	if err := k.config.Client.Get(ctx, client.ObjectKeyFromObject(config), config); err != nil {
		return fmt.Errorf("get webhook configuration %s: %w", name, err)
	}
	before := config.DeepCopyObject().(client.Object)
	changed := false
	for _, bundle := range bundles() {
		if !bytes.Equal(*bundle, ca) {
			*bundle, changed = ca, true
		}
	}
	if !changed {
		return nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := k.config.Client.Patch(ctx, config, patch); err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("patch caBundle of webhook configuration %s: %w", name, err)
	}
	return nil
}

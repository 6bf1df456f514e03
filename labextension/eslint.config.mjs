import js from '@eslint/js';
import prettier from 'eslint-config-prettier';
import ts from 'typescript-eslint';

export default ts.config(
  { ignores: ['lib', 'node_modules', 'coverage'] },
  js.configs.recommended,
  {
    files: ['**/*.ts', '**/*.tsx'],
    extends: [...ts.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { project: './tsconfig.test.json', tsconfigRootDir: import.meta.dirname } },
    rules: {
      curly: 'error',
      eqeqeq: 'error',
      // A promise is awaited, or `void` says that nobody waits.
      '@typescript-eslint/no-floating-promises': 'error',
      // Lumino's signals are connected as `signal.connect(this.method, this)`.
      '@typescript-eslint/unbound-method': 'off'
    }
  },
  prettier
);
